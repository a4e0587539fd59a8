use std::path::Path;

use super::*;

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

fn parsed(page: &str) -> roxmltree::Document<'_> {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    roxmltree::Document::parse_with_options(page, options).unwrap()
}

#[test]
fn every_file_of_a_folder_has_its_tables() {
    let files = committed();
    let page = html(&files).unwrap();
    let document = parsed(&page);
    let cells: std::collections::HashSet<String> = document
        .descendants()
        .filter(|node| ["td", "th"].contains(&node.tag_name().name()))
        .map(|node| node.text().unwrap_or_default().to_owned())
        .collect();
    let mut shown = 0;
    for file in &files {
        assert!(cells.contains(&file.name), "{} is missing", file.name);
        let Content::Results(results) = &file.content else { continue };
        shown += 1;
        for line in results.markdown().lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")) {
            for cell in line.trim_matches('|').split('|') {
                assert!(cells.contains(cell.trim()), "{}: {cell:?} is missing", file.name);
            }
        }
        assert!(cells.contains(&results.run().git_revision.clone().unwrap()), "{}", file.name);
    }
    assert!(shown >= 12, "{shown}");
    for part in [
        "2026-11-2",
        "Where PAF does not win",
        "makes no difference that shows",
        "Speedup beside tokens: roberta-large on NVIDIA H100",
        "GEMM beside cuBLASLt, NVIDIA H100",
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
    files.retain(|file| file.name.starts_with("roberta-large-h200") || file.name.starts_with("complexity-"));
    assert_eq!(files.len(), 2);
    let page = html(&files).unwrap();
    let Content::Results(results) = &files[0].content else { panic!("{}", files[0].name) };
    let Results::Complexity(report) = &**results else { panic!("{}", files[0].name) };
    let case = report.cases.iter().find(|case| case.seq_len == 128).unwrap();
    // The measured ratio at 1 × 128 on an H200, to three digits.
    let predicted = case.predicted.saf_over_paf;
    let error = (predicted / 1.563 - 1.0) * 100.0;
    let row = format!(
        "<th scope=\"row\">1 × 128</th><td>{predicted:.3}</td><td>1.563 [1.561, 1.564]</td><td>{error:+.1} %</td>"
    );
    assert!(page.contains(&row), "{row} is missing");
    // On another device there is nothing to compare with.
    let Content::Results(results) = &mut files[1].content else { panic!("{}", files[1].name) };
    let Results::Speedup(report) = &mut **results else { panic!("{}", files[1].name) };
    report.run.machine.device = Some("NVIDIA H100 80GB HBM3".into());
    assert!(!html(&files).unwrap().contains("predicted beside measured; error"));
}

#[test]
fn no_results_are_no_page() {
    for files in [vec![], vec![File::read("a.json", "{}")], vec![File::read("b.json", "")]] {
        let error = html(&files).unwrap_err();
        assert!(error.to_string().contains(&format!("0 of {} files", files.len())), "{error}");
    }
}
