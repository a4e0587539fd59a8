//! `paf complexity` without a device.

use super::*;

#[test]
fn complexity_is_predicted_without_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (json, svg, own) = (path("c.json"), path("c.svg"), path("own.json"));
    for (device, name) in [
        ("h200", "NVIDIA H200"),
        ("h100", "NVIDIA H100 80GB HBM3"),
        ("a100", "NVIDIA A100-SXM4-80GB"),
        ("l40s", "NVIDIA L40S"),
        ("rtx4090", "NVIDIA GeForce RTX 4090"),
    ] {
        let output = paf(&["complexity", "--device", device, "--seq", "128,4096", "--json", &json, "--plot", &svg]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let stdout = text(&output.stdout);
        for part in
            ["beyond seq_len 2048", &format!("predicted for {name}"), "1 × 4096", "7 / 4", "max(FLOPs of both", "c = "]
        {
            assert!(stdout.contains(part), "{part:?} is missing in: {stdout}");
        }
        assert!(!stdout.contains("measured on"), "{stdout}");
        let report = read_json(&json);
        assert_eq!((&report["schema"], &report["device"]["name"]), (&"paf-cuda/complexity/1".into(), &name.into()));
        let cases = report["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 2);
        // 4 · 4096 · 1024² + 2 · 4096² · 1024 multiply-adds, and 8 · 4096 · 1024².
        assert_eq!(
            (&cases[1]["attention"]["flops"], &cases[1]["ffn"]["flops"]),
            (&103079215104.0.into(), &68719476736.0.into())
        );
        for case in cases {
            assert!(
                case.get("measured").is_none() && case["predicted"]["saf_over_paf"].as_f64().unwrap() >= 1.0,
                "{case}"
            );
        }
        let drawn = std::fs::read_to_string(&svg).unwrap();
        let document = roxmltree::Document::parse(&drawn).unwrap();
        assert!(
            document
                .descendants()
                .any(|node| node.text().is_some_and(|text| text.trim() == format!("predicted for {name}")))
        );
    }
    let markdown = paf(&["report", &json]);
    assert_eq!(markdown.status.code(), Some(0), "{}", text(&markdown.stderr));
    assert!(text(&markdown.stdout).contains("Predicted for NVIDIA GeForce RTX 4090"));
    let on_stdout = paf(&["complexity", "--device", "rtx4090", "--seq", "128,4096", "--plot", "-"]);
    assert_eq!(text(&on_stdout.stdout), std::fs::read_to_string(&svg).unwrap());

    // A device of one's own: where a thousandth of the FLOP/s is left, they are the bound.
    let mut description = read_json(&json)["device"].clone();
    description["name"] = "a card".into();
    description["flops_per_s"] = 1e11.into();
    std::fs::write(&own, description.to_string()).unwrap();
    let arguments =
        ["complexity", "--device", &own, "--model", "command-r", "--batch", "2", "--seq", "64", "--json", "-"];
    let output = paf(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let case = &report["cases"][0];
    assert_eq!(
        (&case["batch"], &case["predicted"]["paf_bound"], &case["predicted"]["saf_kernels"]),
        (&2.into(), &"flops".into(), &8.into())
    );
    assert!(text(&output.stderr).contains("predicted for a card"));

    // What is wrong in it is said by its name.
    description["l2_bytes"] = (-1).into();
    std::fs::write(&own, description.to_string()).unwrap();
    refuses(&arguments, 2, &["own.json", "l2_bytes = -1"]);
    description.as_object_mut().unwrap().remove("l2_bytes");
    std::fs::write(&own, description.to_string()).unwrap();
    refuses(&arguments, 2, &["own.json", "l2_bytes = missing"]);
    description["cache_bytes"] = 1.into();
    std::fs::write(&own, description.to_string()).unwrap();
    refuses(&arguments, 2, &["\"cache_bytes\"", "l2_bytes"]);
    std::fs::write(&own, "no JSON").unwrap();
    refuses(&arguments, 2, &["own.json", "JSON"]);
    refuses(&["complexity", "--device", &path("missing.json")], 1, &["cannot read", "missing.json"]);
    refuses(&["complexity", "--device", "h300"], 2, &["device = \"h300\"", "l40s"]);
    refuses(&["complexity", "--device", "h200", "--batch", "0"], 2, &["batch = 0"]);
    refuses(&["complexity", "--device", "h200", "--json", "-", "--plot", "-"], 2, &["at most one"]);
    refuses(
        &["complexity", "--device", "h200", "--plot", &path("missing/c.svg")],
        1,
        &["cannot write", "missing/c.svg"],
    );
    // Without a device there is nothing to measure; what to do is said.
    refuses(&["complexity", "--device", "4096"], 1, &["--device", "h200", "rtx4090"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "temporary files were left");
}
