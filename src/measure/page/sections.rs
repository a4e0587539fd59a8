//! What the page says, section by section.

use std::time::{Duration, UNIX_EPOCH};

use super::pictures::figure;
use super::write::{Escaped, details, list, markdown, table};
use super::{Content, File, Trace};
use crate::measure::report::{self, Machine, Report, Run, Sides, Variant, shape_name};
use crate::measure::results::Results;
use crate::measure::{complexity, plot, trace};

/// A part of the page with a heading.
pub(super) struct Section {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) body: String,
}

/// A file that holds results.
type Named<'a> = (&'a str, &'a Results);

fn results(files: &[File]) -> impl Iterator<Item = Named<'_>> {
    files.iter().filter_map(|file| match &file.content {
        Content::Results(results) => Some((file.name.as_str(), &**results)),
        _ => None,
    })
}

/// A timeline's drawing, and what `paf trace` says of it.
type Timeline<'a> = (&'a str, &'a Trace, Option<&'a trace::Trace>);

fn traces(files: &[File]) -> impl Iterator<Item = Timeline<'_>> {
    files.iter().filter_map(|file| match &file.content {
        Content::Trace(drawn, whole) => Some((file.name.as_str(), drawn, whole.as_deref())),
        _ => None,
    })
}

/// When, by what build and on what machine each file was made: results, and timelines that say it.
fn runs(files: &[File]) -> impl Iterator<Item = (&str, &Run)> {
    files.iter().filter_map(|file| match &file.content {
        Content::Results(results) => Some((file.name.as_str(), results.run())),
        Content::Trace(_, Some(trace)) => Some((file.name.as_str(), &trace.run)),
        Content::Trace(_, None) | Content::Other(_) => None,
    })
}

/// How what a file says was measured.
fn methods(files: &[File]) -> impl Iterator<Item = (&str, &str)> {
    files.iter().filter_map(|file| match &file.content {
        Content::Results(results) => Some((file.name.as_str(), results.method())),
        Content::Trace(_, Some(trace)) => Some((file.name.as_str(), trace.about.source.as_str())),
        Content::Trace(_, None) | Content::Other(_) => None,
    })
}

fn speedups(files: &[File]) -> impl Iterator<Item = (&str, &Report)> {
    results(files).filter_map(|(name, results)| match results {
        Results::Speedup(report) => Some((name, report)),
        _ => None,
    })
}

/// Every section that has something to say.
pub(super) fn all(files: &[File]) -> Vec<Section> {
    let of = |id, title, body| Section { id, title, body };
    let sections = vec![
        of("speedup", "Speedup of PAF over SAF", speedup(files)),
        of("losses", "Where PAF does not win", losses(files)),
        of("doubts", "What casts doubt on these numbers", doubts(files)),
        of("complexity", "Predicted beside measured", predicted(files)),
        of("timelines", "Timelines", timelines(files)),
        of("layers", "Layers beside PyTorch", tables(files, "layers")),
        of("kernels", "Kernels beside their peers", tables(files, "kernels")),
        of("plans", "What the planner chose", tables(files, "plans")),
        of("machines", "Machines", machines(files)),
        of("files", "Files and methods", sources(files)),
    ];
    sections.into_iter().filter(|section| !section.body.is_empty()).collect()
}

/// The page in a sentence.
pub(super) fn summary(files: &[File]) -> String {
    let measured = files.iter().filter_map(|file| match &file.content {
        Content::Results(results) => match &**results {
            Results::Complexity(report) if !report.is_measured() => None,
            results => Some(results.run()),
        },
        Content::Trace(_, whole) => whole.as_ref().map(|trace| &trace.run),
        Content::Other(_) => None,
    });
    let mut devices: Vec<_> = measured.map(|run| run.machine.name()).collect();
    devices.sort_unstable();
    devices.dedup();
    let on = if devices.is_empty() { String::new() } else { format!(", measured on {}", devices.join(", ")) };
    let days: Vec<String> = runs(files).map(|(_, run)| date(run)).collect();
    let when = match (days.iter().min(), days.iter().max()) {
        (Some(first), Some(last)) if first != last => format!(", {first} to {last}"),
        (first, _) => first.map_or_else(String::new, |day| format!(", {day}")),
    };
    format!(
        "From {} result files{when}{on}. In the parallel design (PAF) attention and FFN of a layer run at once; in the serial one \
         (SAF) the FFN waits for attention. Ratios are SAF’s time over PAF’s: above 1 PAF is faster.",
        results(files).count() + traces(files).count()
    )
}

/// Year, month and day in UTC.
fn date(run: &Run) -> String {
    // Beyond the year 9999 is no date of a measurement.
    let time = UNIX_EPOCH + Duration::from_secs(run.unix_time_s.min(253_402_300_799));
    humantime::format_rfc3339_seconds(time).to_string().chars().take(10).collect()
}

/// The model in words: its name, or the checkpoint's, or its dimensions.
fn model(report: &Report) -> String {
    let name = report.checkpoint.as_ref().map(|checkpoint| checkpoint.name.clone()).or_else(|| report.model.clone());
    let config = &report.config;
    name.unwrap_or_else(|| {
        format!("hidden_size {}, intermediate_size {}", config.hidden_size, config.intermediate_size)
    })
}

/// The results at a glance, pictures, and every file's table.
fn speedup(files: &[File]) -> String {
    let mut glance: Vec<_> = speedups(files).flat_map(|(_, report)| best(report)).collect();
    if glance.is_empty() {
        return String::new();
    }
    glance.sort_by(|a, b| a.0.cmp(&b.0));
    let columns =
        ["model", "batch × seq", "SAF / PAF", "PAF is", "SAF, ms", "PAF, ms", "PAF’s schedule", "mode", "device"];
    let rows = glance.into_iter().map(|(_, cells)| cells);
    let mut html = table("The faster SAF beside PAF as planned, each mode and batch shape", columns, rows);
    html += &pictures(files);
    html += "<h3>All that was measured</h3>\n";
    for (name, report) in speedups(files) {
        let title = format!("{}, {} on {}", model(report), report.dtype, report.run.machine.name());
        html += &details(&format!("{name}: {title}"), &markdown(&report.markdown(), &title));
    }
    html
}

/// SAF and PAF of each shape and mode: cells, and by what they are sorted.
fn best(report: &Report) -> impl Iterator<Item = ((String, String, usize), [String; 9])> + '_ {
    report.sides().map(|sides| {
        let Sides { case, mode, saf, paf } = sides;
        let ms = |variant: &Variant| format!("{:.3}", variant.median_us.median / 1e3);
        let ratio = paf.speedup_over_saf;
        let (model, device) = (model(report), report.run.machine.name());
        let tokens = case.lengths.as_ref().map_or_else(
            || case.batch.saturating_mul(case.seq_len),
            |lengths| lengths.iter().fold(0, |sum: usize, &length| sum.saturating_add(length)),
        );
        let cells = [
            model.clone(),
            shape_name(case.batch, case.seq_len, case.packed),
            format!("{:.3} [{:.3}, {:.3}]", ratio.median, ratio.low, ratio.high),
            sides.verdict().to_owned(),
            ms(saf),
            ms(paf),
            paf.schedule_name(),
            mode.to_owned(),
            device.clone(),
        ];
        ((model, device, tokens), cells)
    })
}

/// A picture for each model on each device, folded if it has but one shape; files of one are drawn together.
fn pictures(files: &[File]) -> String {
    let mut groups: Vec<(String, Vec<Report>)> = Vec::new();
    for (_, report) in speedups(files) {
        let name = format!("{} on {}", model(report), report.run.machine.name());
        match groups.iter_mut().find(|(other, _)| *other == name) {
            Some((_, reports)) => reports.push(report.clone()),
            None => groups.push((name, vec![report.clone()])),
        }
    }
    // Those with the most shapes first.
    let shapes = |reports: &[Report]| reports.iter().map(|report| report.cases.len()).sum::<usize>();
    groups.sort_by_key(|(_, reports)| std::cmp::Reverse(shapes(reports)));
    let picture = |(name, reports): &(String, Vec<Report>)| match plot::svg(reports) {
        Ok(svg) => {
            let title = format!("Speedup beside tokens: {name}");
            let caption = format!(
                "{name}: SAF’s time over PAF’s beside the tokens of the batch. Filled markers: the whole interval is above 1; in the \
                 tinted region PAF is slower."
            );
            let figure = figure(&svg, &title, &caption);
            if shapes(reports) > 1 { figure } else { details(&title, &figure) }
        }
        Err(error) => format!("<p>{}</p>\n", Escaped(&format!("No picture of {name}: {error}"))),
    };
    groups.iter().map(picture).collect()
}

/// Warnings: where the parallel design loses or makes no difference.
fn losses(files: &[File]) -> String {
    let mut html = String::new();
    for (name, report) in speedups(files) {
        let lines = report.losses();
        if !lines.is_empty() {
            let title = format!("{} on {} ({name}): {} rows", model(report), report.run.machine.name(), lines.len());
            html += &details(&title, &list(&lines));
        }
    }
    if html.is_empty() || speedups(files).next().is_none() {
        return html;
    }
    let lead = "Rows of PAF whose interval of SAF / PAF lies below 1 or reaches it: of single schedules, and of what the planner chose \
                (auto), which is what the table above has.";
    format!("<p>{}</p>\n{html}", Escaped(lead))
}

/// Predictions with their pictures, and how far they are from what was measured.
fn predicted(files: &[File]) -> String {
    let mut html = String::new();
    let reports = results(files).filter_map(|(name, results)| match results {
        Results::Complexity(report) => Some((name, report)),
        _ => None,
    });
    for (name, report) in reports {
        let title = format!("{} on {}", report.model.as_deref().unwrap_or("custom dimensions"), report.device.name);
        html += &format!("<h3>{}</h3>\n", Escaped(&title));
        html += &list(report.errors().iter().map(|error| format!("Error of the prediction: {error}")));
        html += &beside(files, report, &title);
        html += &match plot::complexity(report) {
            Ok(svg) => figure(&svg, &format!("Blocks beside seq_len: {title}"), &complexity_caption(report)),
            Err(error) => format!("<p>{}</p>\n", Escaped(&format!("No picture: {error}"))),
        };
        html += &details(&format!("{name}: tables"), &markdown(&report.markdown(), &title));
    }
    html
}

/// Predicted ratios beside those that `paf speedup` has measured of the same layers on the same device, as graphs, PAF as planned.
fn beside(files: &[File], report: &complexity::Report, title: &str) -> String {
    let is_same = |other: &Report| {
        let dimensions = |config: &report::Config| {
            let heads = (config.num_attention_heads, config.num_key_value_heads.unwrap_or(config.num_attention_heads));
            (config.hidden_size, heads, config.head_dim, config.intermediate_size, config.gated, config.causal)
        };
        let device = other.run.machine.device.as_deref() == Some(&report.device.name);
        let kernels = other.run.machine.portable == report.run.machine.portable;
        device && kernels && other.dtype == report.dtype && dimensions(&other.config) == dimensions(&report.config)
    };
    let mut rows = Vec::new();
    for (name, other) in speedups(files).filter(|(_, other)| is_same(other)) {
        for case in report.cases.iter().filter(|case| case.lengths.is_none()) {
            let alike = |of: &report::Case| (of.batch, of.seq_len, &of.lengths) == (case.batch, case.seq_len, &None);
            let of_design = |of: &Sides<'_>| of.mode == "graph" && of.paf.design == report.design && alike(of.case);
            let Some(Sides { paf, .. }) = other.sides().find(of_design) else { continue };
            let (predicted, ratio) = (&case.predicted, paf.speedup_over_saf);
            rows.push([
                case.name(),
                format!("{:.3}", predicted.saf_over_paf),
                format!("{:.3} [{:.3}, {:.3}]", ratio.median, ratio.low, ratio.high),
                format!("{:+.1} %", (predicted.saf_over_paf / ratio.median - 1.0) * 100.0),
                format!("{:.2}", predicted.paf_us),
                format!("{:.2}", paf.median_us.median / other.config.num_hidden_layers as f64),
                name.to_owned(),
            ]);
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let columns = [
        "batch × seq",
        "SAF / PAF, predicted",
        "measured",
        "error",
        "PAF, µs a layer, predicted",
        "measured",
        "measured in",
    ];
    let caption =
        format!("{title}: predicted beside measured, PAF as planned; error is predicted / measured ratio − 1");
    table(&caption, columns, rows)
}

fn complexity_caption(report: &complexity::Report) -> String {
    let measured = if report.is_measured() { " Filled and solid: measured." } else { " Nothing here was measured." };
    format!(
        "Times of a layer’s blocks, and SAF’s time over PAF’s. Hollow and dashed: predicted for {}, the least that it allows where branches \
         share it.{measured}",
        report.device.name
    )
}

fn timelines(files: &[File]) -> String {
    let mut html = String::new();
    for (name, drawn, whole) in traces(files) {
        html += &format!("<h3>{}</h3>\n", Escaped(name));
        html += &figure(&drawn.svg(), &format!("Timeline: {name}"), &format!("{name}: {}.", drawn.summary()));
        if let Some(svg) = drawn.beginning() {
            html += &figure(&svg, &format!("Beginning of the timeline: {name}"), "Its beginning, larger.");
        }
        if let Some(whole) = whole {
            html += &markdown(&whole.markdown(), &format!("{name}: time of each kernel"));
        }
    }
    html
}

/// The section that has the tables of these results as they are, what they are of, and what the numbers are; `None` if the results have
/// a section of their own.
fn place(results: &Results) -> Option<(&'static str, &'static str, &'static str)> {
    Some(match results {
        Results::Speedup(_) | Results::Complexity(_) => return None,
        Results::Compare(_) => (
            "layers",
            "SAF and PAF",
            "time of PyTorch’s best over ours (the faster SAF, PAF as planned), and of each row over the same",
        ),
        Results::Peak(_) => ("kernels", "Measured peak", "time and rate of the large product"),
        Results::Gemm(_) => ("kernels", "GEMM beside cuBLASLt", "time of cuBLASLt over ours"),
        Results::Attention(_) => ("kernels", "Attention beside PyTorch", "time of PyTorch’s back ends over ours"),
        Results::Norm(_) => ("kernels", "The join beside a copy", "rate over that of a device-to-device copy"),
        Results::Plan(_) => ("plans", "Schedules", "time of each schedule, and of the choice"),
    })
}

/// The tables of the files that have their place in a section.
fn tables(files: &[File], section: &str) -> String {
    let mut html = String::new();
    for (name, results) in results(files) {
        let Some((_, what, of)) = place(results).filter(|(own, ..)| *own == section) else { continue };
        html += &format!("<h3>{}</h3>\n", Escaped(&format!("{what}, {}", results.run().machine.name())));
        html += &markdown(&results.markdown(), &format!("{name}: {of}"));
    }
    html
}

/// What each file says against itself.
fn doubts(files: &[File]) -> String {
    let of = |(name, results): Named| {
        let lines = results.warnings();
        let title = format!("<h3>{}</h3>\n", Escaped(&format!("{name}, {}", results.run().machine.name())));
        if lines.is_empty() { String::new() } else { title + &list(&lines) }
    };
    results(files).map(of).collect()
}

fn machines(files: &[File]) -> String {
    let mut machines: Vec<&Machine> = Vec::new();
    for (_, Run { machine, .. }) in runs(files) {
        if !machines.contains(&machine) {
            machines.push(machine);
        }
    }
    if machines.is_empty() {
        return String::new();
    }
    let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "–".to_owned());
    let rows = machines.into_iter().map(|machine| {
        [
            machine.device.as_ref().map_or_else(|| "no GPU".to_owned(), |_| machine.name()),
            or(&machine.compute_capability),
            machine.multiprocessors.map_or_else(|| "–".to_owned(), |count| count.to_string()),
            or(&machine.driver),
            or(&machine.cuda_driver_version),
            format!("{}, {} threads", machine.cpu, machine.cpu_threads),
        ]
    });
    table("What it ran on", ["device", "capability", "multiprocessors", "driver", "CUDA of the driver", "host"], rows)
}

/// Every file with its build and date, how it was measured, and what is not shown.
fn sources(files: &[File]) -> String {
    let rows = runs(files).map(|(name, run)| {
        let revision = run.git_revision.clone().unwrap_or_else(|| "not known".to_owned());
        [name.to_owned(), run.schema.clone(), date(run), run.version.clone(), revision]
    });
    // Timelines of other programs say nothing of it.
    let others = traces(files).filter(|(_, _, whole)| whole.is_none());
    let others = others.map(|(name, ..)| {
        let unknown = "–".to_owned();
        [name.to_owned(), "a timeline".to_owned(), unknown.clone(), unknown.clone(), unknown]
    });
    let rows = rows.chain(others);
    let mut html = table("Result files", ["file", "schema", "date (UTC)", "version", "git revision"], rows);
    let mut by_method: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, method) in methods(files) {
        match by_method.iter_mut().find(|(other, _)| *other == method) {
            Some((_, names)) => names.push(name),
            None => by_method.push((method, vec![name])),
        }
    }
    for (method, names) in by_method {
        html += &details(&format!("Method of {}", names.join(", ")), &format!("<p>{}</p>\n", Escaped(method)));
    }
    let other = files.iter().filter_map(|file| match &file.content {
        Content::Other(why) => Some([file.name.clone(), why.clone()]),
        _ => None,
    });
    let other: Vec<_> = other.collect();
    if !other.is_empty() {
        html += &format!("<div class=\"wrap\">\n{}</div>\n", table("Files that are not shown", ["file", "why"], other));
    }
    html
}
