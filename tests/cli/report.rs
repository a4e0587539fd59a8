//! `paf report`: tables, pictures, and the page of a folder.

use super::*;

#[test]
fn results_are_drawn_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (first, second, svg) = (path("1.json"), path("2.json"), path("plot.svg"));
    for (seq, file) in [("16", &first), ("24", &second)] {
        let mut arguments = small(&["--json", file]);
        *arguments.iter_mut().find(|argument| **argument == "16").unwrap() = seq;
        let output = paf(&arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
    let output = paf(&["report", &first, &second, "--plot", &svg]);
    assert_eq!((output.status.code(), text(&output.stdout), text(&output.stderr)), (Some(0), "".into(), "".into()));
    let drawn = std::fs::read_to_string(&svg).unwrap();
    let document = roxmltree::Document::parse(&drawn).unwrap();
    let texts: Vec<_> = document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
    for part in [
        "PAF slower",
        "serial",
        "two-stream",
        "1 ×",
        "16",
        "24",
        "hidden_size 64, 2 heads, intermediate_size 128 (paf-post), 2 layers",
    ] {
        assert!(texts.contains(&part), "{part:?} is missing in: {texts:?}");
    }
    let output = paf(&["report", "--plot", "-", &first, &second]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), drawn.clone()));

    // Without a plot, a table each.
    let output = paf(&["report", &first, &second]);
    assert_eq!((output.status.code(), table_lines(&text(&output.stdout))), (Some(0), 2 * (2 + 3)));

    // At a glance, SAF beside the fastest PAF of either.
    let output = paf(&["report", "--summary", &first, &second]);
    let summary = text(&output.stdout);
    assert_eq!((output.status.code(), table_lines(&summary)), (Some(0), 2 * (2 + 1)), "{summary}");
    assert!(summary.contains("\n| 1 × 16 | eager | ") && summary.contains("\n| 1 × 24 | eager | "), "{summary}");
    for other in ["--plot", "--html"] {
        refuses(&["report", &first, "--summary", other, "-"], 2, &["--summary", other]);
    }

    // What cannot be drawn, or not there; what was there stays.
    refuses(&["report", &first, &first, "--plot", &svg], 2, &["two (1 × 16, serial eager)", "expected one"]);
    refuses(&["report", &first, &path("3.json"), "--plot", &svg], 1, &["cannot read", "3.json"]);
    refuses(&["report", &svg, "--plot", "-"], 1, &["plot.svg", "no result"]);
    let gemm = path("gemm.json");
    std::fs::write(&gemm, r#"{ "schema": "paf-cuda/gemm/1" }"#).unwrap();
    refuses(&["report", &gemm, "--plot", "-"], 1, &["gemm.json", "paf-cuda/gemm/1", "paf-cuda/speedup/1"]);
    std::fs::write(&gemm, std::fs::read_to_string(&first).unwrap().replace("saf-post", "another")).unwrap();
    refuses(&["report", &gemm, "--plot", &svg], 2, &["baseline", "SAF"]);
    refuses(&["report", &first, "--plot", &path("missing/plot.svg")], 1, &["cannot write", "missing/plot.svg"]);
    refuses(&["report", "--plot", "-"], 2, &["<FILES>"]);
    assert_eq!(std::fs::read_to_string(&svg).unwrap(), drawn);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4, "temporary files were left");
}

#[test]
fn doubts_are_under_the_table_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("speedup.json");
    let name = file.to_str().unwrap();
    let output = paf(&small(&["--batch", "1,2", "--json", name]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let mut report = read_json(&file);
    let mut reported = |noise_target: serde_json::Value, planted: serde_json::Value, option: &[&str]| {
        report["noise_target"] = noise_target;
        report["planted"] = planted;
        for case in report["cases"].as_array_mut().unwrap() {
            for (i, variant) in case["variants"].as_array_mut().unwrap().iter_mut().enumerate() {
                let low = 1000.0 - 10.0 * i as f64;
                variant["median_us"] =
                    serde_json::json!({"median": 1000.0, "low": low, "high": 1000.0, "confidence": 0.96});
            }
        }
        std::fs::write(&file, report.to_string()).unwrap();
        let output = paf(&[&["report", name], option].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };

    let quiet = reported(serde_json::Value::Null, serde_json::Value::Null, &[]);
    assert_eq!((quiet.lines().count(), table_lines(&quiet)), (2 + 6, 2 + 6), "{quiet}");
    let doubtful = reported(0.005.into(), "PAF_PLANT_SLOWDOWN=paf:1.05".into(), &[]);
    let planted = "times that a test has made longer: PAF_PLANT_SLOWDOWN=paf:1.05";
    let noise = "noise above ± 0.5 % in 4 of 6 rows, at worst 2 × 16: paf-post two-stream (eager) ± 2.0 %";
    assert_eq!(doubtful, format!("{quiet}\n- warning: {planted}\n- warning: {noise}\n"));
    let page = reported(0.005.into(), "PAF_PLANT_SLOWDOWN=paf:1.05".into(), &["--html", "-"]);
    for part in [planted, noise] {
        assert!(page.contains(&format!("<li>{part}</li>")), "{part:?} is missing");
    }
    // At a glance, how many there are.
    let summary = reported(0.005.into(), "PAF_PLANT_SLOWDOWN=paf:1.05".into(), &["--summary"]);
    let counted = "\n\nWarning: 2 kinds of doubt about these times, named by `paf report speedup.json`.\n";
    assert!(summary.ends_with(counted) && !summary.contains("noise above"), "{summary}");
    let one = reported(0.005.into(), serde_json::Value::Null, &["--summary"]);
    assert!(one.contains("\nWarning: 1 kind of doubt"), "{one}");
    let none = reported(0.1.into(), serde_json::Value::Null, &["--summary"]);
    assert!(!none.contains("Warning"), "{none}");
}

#[test]
fn a_folder_becomes_one_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let here = folder.path().to_str().unwrap();
    // An empty folder, and one without results, are refused, and no page is left.
    refuses(&["report", here, "--html", &path("page.html")], 1, &[here, "no result files", "--json"]);
    std::fs::write(path("other.json"), "{}").unwrap();
    refuses(&["report", here], 1, &["other.json is not shown", "no result files"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let speedup = paf(&small(&["--json", &path("speedup.json")]));
    assert_eq!(speedup.status.code(), Some(0), "{}", text(&speedup.stderr));
    let complexity = paf(&["complexity", "--device", "l40s", "--seq", "64", "--json", &path("complexity.json")]);
    assert_eq!(complexity.status.code(), Some(0), "{}", text(&complexity.stderr));
    let trace = r#"{"traceEvents": [{"ph": "X", "name": "W1", "pid": 0, "tid": 1, "ts": 0, "dur": 3.5}]}"#;
    std::fs::write(path("one-trace.json"), trace).unwrap();
    let output = paf(&["report", here, "--html", &path("page.html")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("other.json is not shown"));
    // The tables as ever, and the page with all of them, and what is not shown.
    let tables = paf(&["report", &path("complexity.json"), &path("one-trace.json"), &path("speedup.json")]);
    assert_eq!(text(&output.stdout), text(&tables.stdout));
    assert!(text(&tables.stdout).contains("one-trace.json: 3.50 µs on 1 tracks"));
    let page = std::fs::read_to_string(path("page.html")).unwrap();
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(&page, options).unwrap();
    let texts: Vec<_> = document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
    for part in
        ["other.json", "complexity.json", "speedup.json", "two-stream", "Timeline: one-trace.json", "W1, 3.50 µs"]
    {
        assert!(texts.contains(&part), "{part:?} is missing in: {texts:?}");
    }
    let on_stdout = paf(&["report", "--html", "-", here]);
    assert_eq!((on_stdout.status.code(), text(&on_stdout.stdout)), (Some(0), page));
    refuses(&["report", &path("other.json"), "--html", "-"], 1, &["other.json", "no result"]);
    refuses(&["report", here, "--html", "-", "--plot", "-"], 2, &["--html", "--plot"]);
    refuses(&["report", here, "--html", &path("missing/page.html")], 1, &["cannot write", "missing/page.html"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 5, "temporary files were left");
}

#[test]
fn a_plan_is_reported_again() {
    let folder = tempfile::tempdir().unwrap();
    let (speedup, plan) = (folder.path().join("s.json"), folder.path().join("p.json"));
    let output = paf(&small(&["--json", speedup.to_str().unwrap()]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    // What result files of both kinds have in common, and one shape.
    let mut report = read_json(&speedup);
    report["schema"] = "paf-cuda/plan/1".into();
    report["design"] = "paf-post".into();
    report["budget_s"] = 2.0.into();
    report["cases"] = serde_json::json!([{
        "batch": 1, "seq_len": 128, "lengths": null, "packed": false, "tokens": 128,
        "schedule": "fused", "plan": "fused attention=sm90:rows64", "from_cache": false, "warnings": [],
        "candidates": [
            {"schedule": "serial", "plan": "serial", "median_us": 660.0},
            {"schedule": "fused", "plan": "fused attention=sm90:rows64", "median_us": 400.0},
        ],
    }]);
    std::fs::write(&plan, report.to_string()).unwrap();
    let output = paf(&["report", plan.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("| 1 × 128 | 128 | 0.660 | – | – | – | fused | 0.400 | 1.650 |"));
    report["schema"] = "paf-cuda/plan/0".into();
    std::fs::write(&plan, report.to_string()).unwrap();
    refuses(&["report", plan.to_str().unwrap()], 1, &["paf-cuda/plan/0", "paf-cuda/plan/1"]);
}
