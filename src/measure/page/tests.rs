use std::path::Path;

use super::*;
use crate::measure::kernels::Row;
use crate::measure::report::{Case, Report, Run, Spread, Variant};
use crate::measure::{compare, peak};

const HOSTILE: &str = "<script>alert(1)</script>\" onload='x' & ]]> | \u{0}";

/// The files of the results' folder.
fn committed() -> Vec<File> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| File::read(name(path), &std::fs::read_to_string(path).unwrap())).collect()
}

/// The folder's, and of what it has no file of: a comparison of the shapes of one of them, a peak and a timeline.
fn one_of_each() -> Vec<File> {
    let mut files = committed();
    let speedup = files.iter().find_map(|file| match &file.content {
        Content::Results(results) => match &**results {
            Results::Speedup(report) => Some(report.clone()),
            _ => None,
        },
        _ => None,
    });
    let compare = compared(speedup.unwrap()).json();
    let others = [("compare", compare), ("peak", peaked().json()), ("trace", trace::example().json())];
    files.extend(others.map(|(name, text)| File::read(format!("made-up-{name}.json"), &text)));
    files
}

fn compared(report: Report) -> compare::Report {
    let case = |ours: Case| {
        let saf = ours.variants.iter().find(|variant| variant.design.starts_with("saf")).unwrap().clone();
        let row = compare::PeerRow {
            by: "PyTorch".into(),
            design: saf.design,
            way: "eager".into(),
            mode: "graph".into(),
            verified: vec![],
            samples_us: saf.samples_us.iter().map(|us| us * 1.5).collect(),
            median_us: saf.median_us,
            over_ours: Spread { median: 1.5, low: 1.5, high: 1.5, confidence: 0.95 },
        };
        compare::Case { ours, peers: vec![row], absent: vec![] }
    };
    let Report { run, backend, dtype, seed, method, ceilings, config, model, cases, .. } = report;
    let cases = cases.into_iter().map(case).collect();
    let why = "there was no room".into();
    compare::Report {
        run: Run { schema: compare::SCHEMA.into(), ..run },
        backend,
        dtype,
        seed,
        method: format!("{method} In turns with PyTorch."),
        noise_target: None,
        ceilings,
        peer: None,
        missing: vec![compare::Missing { way: "compile".into(), why, from: None }],
        stacks: vec![compare::Stack { model, design: "paf-post".into(), config, cases }],
    }
}

fn peaked() -> peak::Report {
    let row = Row {
        by: "cuBLASLt".into(),
        what: "product".into(),
        variant: None,
        planned: false,
        overlap: false,
        samples_us: vec![1650.0],
        median_us: Spread { median: 1650.0, low: 1649.0, high: 1651.0, confidence: 0.95 },
        tflops: 666.0,
        peak_share: None,
        measured_share: None,
        peer_over_this: None,
    };
    peak::Report { rows: vec![row], ..peak::of_cpu().unwrap() }
}

fn parsed(page: &str) -> roxmltree::Document<'_> {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    roxmltree::Document::parse_with_options(page, options).unwrap()
}

#[test]
fn every_file_of_a_folder_has_its_tables() {
    let files = one_of_each();
    let page = html(&files).unwrap();
    let document = parsed(&page);
    let cells: std::collections::HashSet<String> = document
        .descendants()
        .filter(|node| ["td", "th"].contains(&node.tag_name().name()))
        .map(|node| node.text().unwrap_or_default().to_owned())
        .collect();
    let (mut shown, mut doubtful) = (0, 0);
    for file in &files {
        assert!(cells.contains(&file.name), "{} is missing", file.name);
        let (text, run) = match &file.content {
            Content::Results(results) => (results.markdown(), results.run()),
            Content::Trace(_, Some(trace)) => (trace.markdown(), &trace.run),
            // Some file of the folder is of another kind; its name is there.
            _ if !file.name.starts_with("made-up-") => continue,
            other => panic!("{}: {other:?}", file.name),
        };
        shown += 1;
        if let Content::Results(results) = &file.content {
            for doubt in results.warnings() {
                assert!(page.contains(&format!("<li>{}</li>", Escaped(&doubt))), "{}: {doubt:?} is missing", file.name);
                doubtful += 1;
            }
        }
        for note in text.lines().filter_map(|line| line.strip_prefix("- ")) {
            assert!(page.contains(&format!("<li>{}</li>", Escaped(note))), "{}: {note:?} is missing", file.name);
        }
        for line in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")) {
            for cell in line.trim_matches('|').split('|') {
                assert!(cells.contains(cell.trim()), "{}: {cell:?} is missing", file.name);
            }
        }
        assert!(run.git_revision.as_ref().is_none_or(|revision| cells.contains(revision)), "{}", file.name);
        assert!(cells.contains(&run.machine.device.clone().unwrap_or_else(|| "no GPU".into())), "{}", file.name);
    }
    assert!(shown >= 12 && doubtful > 0, "{shown} {doubtful}");
    for part in [
        "2026-11-2",
        "Where PAF does not win",
        "makes no difference that shows",
        "Speedup beside tokens: roberta-large on NVIDIA H100",
        "GEMM beside cuBLASLt, NVIDIA H100",
        "<h2 id=\"layers-title\">Layers beside PyTorch</h2>",
        "PyTorch compile was not measured: there was no room",
        "In turns with PyTorch.",
        "Measured peak, ",
        "measured peak: product ",
        "Method of made-up-trace.json",
    ] {
        assert!(page.contains(part), "{part:?} is missing");
    }
}

#[test]
fn the_page_needs_nothing_else_and_can_be_read_by_everyone() {
    let page = html(&committed()).unwrap();
    let document = parsed(&page);
    let names = |name: &'static str| document.descendants().filter(move |node| node.tag_name().name() == name);
    assert_eq!(names("script").chain(names("link")).chain(names("img")).chain(names("iframe")).count(), 0);
    for node in document.descendants() {
        for attribute in node.attributes() {
            assert!(!attribute.name().starts_with("on"), "{attribute:?}");
            if ["href", "src"].contains(&attribute.name()) {
                let id = attribute.value().strip_prefix('#').unwrap_or_else(|| panic!("{attribute:?}"));
                assert!(document.descendants().any(|node| node.attribute("id") == Some(id)), "#{id}");
            }
        }
    }
    assert!(!page.contains("url(") && !page.contains("@import"));
    assert!(names("table").count() > 14 && names("svg").count() >= 6);
    for table in names("table") {
        assert_eq!(table.first_element_child().unwrap().tag_name().name(), "caption");
        assert_eq!(table.parent_element().unwrap().attribute("class"), Some("scroll"));
    }
    for svg in names("svg") {
        assert_eq!(
            (svg.attribute("role"), svg.first_element_child().unwrap().tag_name().name()),
            (Some("img"), "title")
        );
    }
    assert_eq!(
        (names("h1").count(), names("main").count(), names("title").next().unwrap().text()),
        (1, 1, Some(TITLE))
    );
}

#[test]
fn what_comes_from_a_file_cannot_become_markup() {
    let mut files = committed();
    for file in &mut files {
        file.name = format!("{HOSTILE}{}", file.name);
        let Content::Results(results) = &mut file.content else { continue };
        match &mut **results {
            Results::Speedup(report) => {
                report.run.machine.device = Some(HOSTILE.into());
                report.model = Some(HOSTILE.into());
                report.method = HOSTILE.into();
                report.run.git_revision = Some(HOSTILE.into());
                report.cases[0].variants[0].schedule = HOSTILE.into();
            }
            Results::Attention(report) => report.cases[0].rows[0].variant = Some(HOSTILE.into()),
            Results::Gemm(report) => report.run.machine.cpu = HOSTILE.into(),
            _ => {}
        }
    }
    let trace = r#"{"traceEvents": [{"ph": "X", "name": "<script>", "tid": "</svg>", "ts": 0, "dur": 100}]}"#;
    files.push(File::read("a.json", trace));
    files.push(File::read(HOSTILE, "<script>"));
    files.push(File::read("other.json", r#"{"schema": "</td><script>"}"#));
    let page = html(&files).unwrap();
    let document = parsed(&page);
    assert!(!page.contains("<script"), "a script");
    assert!(document.descendants().all(|node| node.attribute("onload").is_none()));
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    // The timeline is there, with its one slice.
    assert!(page.contains("<title>&lt;script&gt;, 100.00 µs</title>") && page.contains("&lt;/svg&gt;"));
}

#[test]
fn predictions_stand_beside_what_was_measured() {
    let mut files = committed();
    files.retain(|file| file.name == "roberta-large-h100.json" || file.name.starts_with("complexity-"));
    assert_eq!(files.len(), 2);
    let Content::Results(results) = &files[0].content else { panic!("{}", files[0].name) };
    let Results::Complexity(report) = &**results else { panic!("{}", files[0].name) };
    let case = report.cases.iter().find(|case| case.seq_len == 128).unwrap();
    let predicted = case.predicted.saf_over_paf;
    // What the planner chose stands there, also where another row had more luck.
    let Content::Results(results) = &mut files[1].content else { panic!("{}", files[1].name) };
    let Results::Speedup(report) = &mut **results else { panic!("{}", files[1].name) };
    let of =
        |name: &'static str| move |v: &&mut Variant| v.design == "paf-post" && v.schedule == name && v.mode == "graph";
    let variants = &mut report.cases[0].variants;
    let chosen = variants.iter_mut().find(of("auto")).unwrap().clone();
    variants.iter_mut().find(of("fused")).unwrap().median_us.median = chosen.median_us.median / 2.0;
    let Spread { median, low, high, .. } = chosen.speedup_over_saf;
    let error = (predicted / median - 1.0) * 100.0;
    let row = format!(
        "<th scope=\"row\">1 × 128</th><td>{predicted:.3}</td><td>{median:.3} [{low:.3}, {high:.3}]</td><td>{error:+.1} %</td>"
    );
    let page = html(&files).unwrap();
    assert!(page.contains(&row) && page.contains("predicted beside measured, "), "{row} is missing");
    // On another device there is nothing to compare with.
    let Content::Results(results) = &mut files[1].content else { panic!("{}", files[1].name) };
    let Results::Speedup(report) = &mut **results else { panic!("{}", files[1].name) };
    report.run.machine.device = Some("NVIDIA H200".into());
    assert!(!html(&files).unwrap().contains("predicted beside measured, "));
}

#[test]
fn timelines_alone_are_a_page() {
    let page = html(&[File::read("t.json", &trace::example().json())]).unwrap();
    for part in
        ["From 1 result files, 20", ", measured on ", "time together: ", "<td>3.75</td>", "What it ran on", "made up"]
    {
        assert!(page.contains(part), "{part:?} is missing");
    }
    // Another program's says nothing of when and where.
    let other = r#"{"traceEvents": [{"ph": "X", "name": "a", "ts": 0, "dur": 100}]}"#;
    let page = html(&[File::read("other.json", other)]).unwrap();
    assert!(page.contains("From 1 result files. In") && !page.contains("What it ran on"));
    assert!(page.contains("<th scope=\"row\">other.json</th>"));
}

#[test]
fn no_results_are_no_page() {
    for files in [vec![], vec![File::read("a.json", "{}")], vec![File::read("b.json", "")]] {
        let error = html(&files).unwrap_err();
        assert!(error.to_string().contains(&format!("0 of {} files", files.len())), "{error}");
    }
}
