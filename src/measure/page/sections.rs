//! What the page says, section by section.

use std::time::{Duration, UNIX_EPOCH};

use super::pictures::figure;
use super::write::{Escaped, details, list, markdown, table};
use super::{Content, File, Trace};
use crate::measure::report::{self, Machine, Report, Run, Variant, shape_name};
use crate::measure::results::Results;
use crate::measure::{complexity, plot};

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

fn traces(files: &[File]) -> impl Iterator<Item = (&str, &Trace)> {
    files.iter().filter_map(|file| match &file.content {
        Content::Trace(trace) => Some((file.name.as_str(), trace)),
        _ => None,
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
    let kernels = |results: &Results| matches!(results, Results::Gemm(_) | Results::Attention(_) | Results::Norm(_));
    let sections = vec![
        of("speedup", "Speedup of PAF over SAF", speedup(files)),
        of("losses", "Where PAF does not win", losses(files)),
        of("complexity", "Predicted beside measured", predicted(files)),
        of("timelines", "Timelines", timelines(files)),
        of("kernels", "Kernels beside their peers", tables(files, kernels)),
        of("plans", "What the planner chose", tables(files, |results| matches!(results, Results::Plan(_)))),
        of("machines", "Machines", machines(files)),
        of("files", "Files and methods", sources(files)),
    ];
    sections.into_iter().filter(|section| !section.body.is_empty()).collect()
}

/// The page in a sentence.
pub(super) fn summary(files: &[File]) -> String {
    let mut devices: Vec<&str> = results(files).map(|(_, results)| device(&results.run().machine)).collect();
    devices.sort_unstable();
    devices.dedup();
    let days: Vec<String> = results(files).map(|(_, results)| date(results.run())).collect();
    let (first, last) =
        (days.iter().min().cloned().unwrap_or_default(), days.iter().max().cloned().unwrap_or_default());
    let when = if first == last { first } else { format!("{first} to {last}") };
    format!(
        "From {} result files, {when}, on {}. In the parallel design (PAF) attention and FFN of a layer run at once; in the serial one \
         (SAF) the FFN waits for attention. Ratios are SAF’s time over PAF’s: above 1 PAF is faster.",
        results(files).count(),
        devices.join(", ")
    )
}

fn device(machine: &Machine) -> &str {
    machine.device.as_deref().unwrap_or(&machine.cpu)
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
    let glance: Vec<_> = speedups(files).flat_map(|(_, report)| best(report)).collect();
    if glance.is_empty() {
        return String::new();
    }
    let columns = ["model", "device", "batch × seq", "mode", "SAF, ms", "PAF, ms", "PAF’s schedule", "SAF / PAF"];
    let mut html = table("The faster SAF beside the fastest PAF, each mode and batch shape", columns, glance);
    html += &pictures(files);
    html += "<h3>All that was measured</h3>\n";
    for (name, report) in speedups(files) {
        let title = format!("{}, {} on {}", model(report), report.dtype, device(&report.run.machine));
        html += &details(&format!("{name}: {title}"), &markdown(&report.markdown(), &title));
    }
    html
}

/// SAF, and the fastest PAF, of each shape and mode.
fn best(report: &Report) -> Vec<[String; 8]> {
    let fastest = |case: &report::Case, mode: &str, parallel: bool| -> Option<Variant> {
        let of = case.variants.iter().filter(|v| v.mode == mode && v.design.starts_with("paf") == parallel);
        of.min_by(|a, b| a.median_us.median.total_cmp(&b.median_us.median)).cloned()
    };
    let mut rows = Vec::new();
    for case in &report.cases {
        let mut modes: Vec<&str> = case.variants.iter().map(|variant| variant.mode.as_str()).collect();
        modes.sort_unstable();
        modes.dedup();
        for mode in modes {
            let (Some(saf), Some(paf)) = (fastest(case, mode, false), fastest(case, mode, true)) else { continue };
            let ms = |variant: &Variant| format!("{:.3}", variant.median_us.median / 1e3);
            let ratio = paf.speedup_over_saf;
            rows.push([
                model(report),
                device(&report.run.machine).to_owned(),
                shape_name(case.batch, case.seq_len, case.packed),
                mode.to_owned(),
                ms(&saf),
                ms(&paf),
                paf.schedule_name(),
                format!("{:.3} [{:.3}, {:.3}]", ratio.median, ratio.low, ratio.high),
            ]);
        }
    }
    rows
}

/// A picture for each model on each device; files of one are drawn together.
fn pictures(files: &[File]) -> String {
    let mut groups: Vec<(String, Vec<Report>)> = Vec::new();
    for (_, report) in speedups(files) {
        let name = format!("{} on {}", model(report), device(&report.run.machine));
        match groups.iter_mut().find(|(other, _)| *other == name) {
            Some((_, reports)) => reports.push(report.clone()),
            None => groups.push((name, vec![report.clone()])),
        }
    }
    let picture = |(name, reports): &(String, Vec<Report>)| match plot::svg(reports) {
        Ok(svg) => figure(
            &svg,
            &format!("Speedup beside tokens: {name}"),
            &format!(
                "{name}: SAF’s time over PAF’s beside the tokens of the batch. Filled markers: the whole interval is above 1; in the \
                 tinted region PAF is slower."
            ),
        ),
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
            let title = format!("{} on {} ({name}): {} rows", model(report), device(&report.run.machine), lines.len());
            html += &details(&title, &list(&lines));
        }
    }
    if html.is_empty() || speedups(files).next().is_none() {
        return html;
    }
    let lead =
        "Rows whose interval of SAF / PAF lies below 1 or reaches it: single schedules, beside the fastest ones above.";
    format!("<p>{}</p>\n{html}", Escaped(lead))
}

fn predicted(files: &[File]) -> String {
    let mut html = String::new();
    let reports = results(files).filter_map(|(name, results)| match results {
        Results::Complexity(report) => Some((name, report)),
        _ => None,
    });
    for (name, report) in reports {
        let state = if report.is_measured() { "predicted and measured" } else { "predicted, not measured" };
        let title =
            format!("{} on {} ({state})", report.model.as_deref().unwrap_or("custom dimensions"), report.device.name);
        html += &format!("<h3>{}</h3>\n", Escaped(&title));
        html += &list(report.errors().iter().map(|error| format!("Error of the prediction: {error}")));
        html += &match plot::complexity(report) {
            Ok(svg) => figure(&svg, &format!("Blocks beside seq_len: {title}"), &complexity_caption(report)),
            Err(error) => format!("<p>{}</p>\n", Escaped(&format!("No picture: {error}"))),
        };
        html += &details(&format!("{name}: tables"), &markdown(&report.markdown(), &title));
    }
    html
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
    for (name, trace) in traces(files) {
        html += &format!("<h3>{}</h3>\n", Escaped(name));
        html += &figure(&trace.svg(), &format!("Timeline: {name}"), &format!("{name}: {}.", trace.summary()));
        if let Some(svg) = trace.beginning() {
            html += &figure(&svg, &format!("Beginning of the timeline: {name}"), "Its beginning, larger.");
        }
    }
    html
}

/// The tables of some files.
fn tables(files: &[File], wanted: impl Fn(&Results) -> bool) -> String {
    let mut html = String::new();
    for (name, results) in results(files).filter(|(_, results)| wanted(results)) {
        let title = format!("{name}: {}", device(&results.run().machine));
        html += &format!("<h3>{}</h3>\n", Escaped(&title));
        html += &markdown(&results.markdown(), &title);
    }
    html
}

fn machines(files: &[File]) -> String {
    let mut machines: Vec<&Machine> = Vec::new();
    for (_, results) in results(files) {
        let machine = &results.run().machine;
        if !machines.contains(&machine) {
            machines.push(machine);
        }
    }
    let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "–".to_owned());
    let rows = machines.into_iter().map(|machine| {
        [
            machine.device.clone().unwrap_or_else(|| "no GPU".to_owned()),
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
    let rows = results(files).map(|(name, results)| {
        let run = results.run();
        let revision = run.git_revision.clone().unwrap_or_else(|| "not known".to_owned());
        [name.to_owned(), run.schema.clone(), date(run), run.version.clone(), revision]
    });
    let mut html = table("Result files", ["file", "schema", "date (UTC)", "version", "git revision"], rows);
    let mut methods: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, results) in results(files) {
        match methods.iter_mut().find(|(method, _)| *method == results.method()) {
            Some((_, names)) => names.push(name),
            None => methods.push((results.method(), vec![name])),
        }
    }
    for (method, names) in methods {
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
