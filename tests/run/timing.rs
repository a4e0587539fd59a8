//! What `--timing` says.

use super::*;

#[test]
fn what_took_how_long_is_one_object_on_stderr() {
    let folder = Folder::new("bert_encoder");
    // One of them cannot be run, and is not counted.
    let input = folder.write("texts.jsonl", json_lines() + "{}\n");
    let output = folder.run(&["--input", &input, "--timing"]);
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), lines(&output.stdout).len()), (Some(1), TEXTS.len() + 1), "{stderr}");
    let timing: Value = stderr.lines().find_map(|line| serde_json::from_str(line).ok()).expect("an object on stderr");

    let tokens: usize = TEXTS.iter().map(|text| text.split(' ').count() + 2).sum();
    assert_eq!((&timing["texts"], &timing["tokens"]), (&json!(TEXTS.len()), &json!(tokens)));
    let seconds = |part: &str| timing[part].as_f64().unwrap_or_else(|| panic!("{part} in {timing}"));
    for part in ["loading_s", "reading_s", "tokenizing_s", "computing_s"] {
        assert!(seconds(part) > 0.0 && seconds(part) < 600.0, "{part} in {timing}");
    }
    let both = seconds("tokenizing_s") + seconds("computing_s");
    for (part, count) in [("texts_per_s", TEXTS.len()), ("tokens_per_s", tokens)] {
        assert!((seconds(part) * both / count as f64 - 1.0).abs() < 1e-9, "{part} in {timing}");
    }
    assert!(text(&folder.run(&["--input", &input]).stderr).lines().all(|line| !line.starts_with('{')));
}
