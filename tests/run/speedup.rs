//! `paf speedup` of a checkpoint's weights, and of texts' lengths.

use super::*;

fn speedup(folder: &Folder, arguments: &[&str]) -> Output {
    let fixed = ["speedup", "--backend", "cpu", "--seconds", "0.05", "--checkpoint", folder.0.path().to_str().unwrap()];
    let paf = Command::new(env!("CARGO_BIN_EXE_paf")).args(fixed).args(arguments).stdin(Stdio::null()).output();
    paf.expect("paf starts")
}

#[track_caller]
fn report(folder: &Folder, arguments: &[&str]) -> Value {
    let output = speedup(folder, &[arguments, &["--json", "-"]].concat());
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
    let name = folder.0.path().file_name().unwrap().to_str().unwrap();
    assert!(text(&output.stderr).contains(name), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn refuses(folder: &Folder, arguments: &[&str], code: i32, parts: &[&str]) {
    let output = speedup(folder, arguments);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    for part in parts {
        assert!(stderr.contains(part), "{arguments:?}: {part:?} is missing in: {stderr}");
    }
}

#[test]
fn a_checkpoint_is_measured_in_both_designs_with_its_texts_lengths() {
    for (name, design, gated) in [("cohere", "paf-pre", true), ("roberta", "paf-post", false)] {
        let folder = Folder::new(name);
        let input =
            folder.write("texts.jsonl", "{\"line\": \"w5 w6 w7\"}\n\n{\"line\": \"w5\"}\n{\"line\": \"w9 w8\"}\n");
        let report = report(&folder, &["--input", &input, "--field", "line"]);
        // RoBERTa's tokens have one before them, and one behind.
        let ends = if gated { 0 } else { 2 };
        let case = &report["cases"][0];
        assert_eq!((&case["lengths"], &case["packed"]), (&json!([3 + ends, 1 + ends, 2 + ends]), &json!(true)));
        let config = &report["config"];
        assert_eq!((&config["num_hidden_layers"], &config["gated"]), (&json!(2), &json!(gated)));
        let variants = case["variants"].as_array().unwrap();
        assert!(variants.iter().any(|variant| variant["design"] == design), "{variants:?}");

        let checkpoint = &report["checkpoint"];
        assert_eq!(checkpoint["name"], folder.0.path().file_name().unwrap().to_str().unwrap());
        assert_eq!((&checkpoint["model_type"], &report["model"]), (&json!(name), &json!(null)));
        let files = checkpoint["files"].as_array().unwrap();
        assert_eq!(files.len(), if gated { 1 } else { 2 });
        for file in files {
            let bytes = std::fs::metadata(folder.path(file["name"].as_str().unwrap())).unwrap().len();
            assert_eq!(file["bytes"], bytes);
        }
        assert!(report["method"].as_str().unwrap().starts_with("The weights of a checkpoint"), "{}", report["method"]);
    }
}

/// Texts' tokens are made on the pool of those threads.
#[test]
fn threads_may_be_chosen_beside_texts() {
    let report = report(&Folder::new("gptj"), &["--text", "w5 w6", "--threads", "3"]);
    assert_eq!((&report["cases"][0]["lengths"], &report["machine"]["cpu_threads"]), (&json!([2]), &json!(3)));
}

#[test]
fn a_checkpoint_is_measured_on_shapes_too() {
    let folder = Folder::new("falcon");
    let report = report(&folder, &["--layers", "1", "--batch", "2", "--seq", "5"]);
    let case = &report["cases"][0];
    assert_eq!((&case["batch"], &case["seq_len"], &case["lengths"]), (&json!(2), &json!(5), &json!(null)));
    assert_eq!(report["config"]["num_hidden_layers"], 1);
}

#[test]
fn what_a_checkpoint_does_not_have_is_refused() {
    let folder = Folder::new("gptj");
    refuses(&folder, &["--layers", "3"], 2, &["layers = 3", "at most 2"]);
    refuses(&folder, &["--model", "phi-2"], 2, &["--model", "--checkpoint"]);
    refuses(
        &folder,
        &["--hidden-size", "64", "--num-attention-heads", "2", "--intermediate-size", "8"],
        2,
        &["--hidden-size"],
    );
    refuses(&folder, &["--text", "w5", "--seq", "8"], 2, &["--text", "--seq"]);
    refuses(&folder, &["--text", "w5", "--text", ""], 1, &["text 2: the text is empty"]);
    let long = ["w5"; 33].join(" ");
    refuses(&folder, &["--text", &long], 1, &["text 1", "33 tokens", "positions for 32 (max_position_embeddings)"]);
    std::fs::remove_file(folder.path("tokenizer.json")).unwrap();
    refuses(&folder, &["--text", "w5"], 1, &["tokenizer.json"]);
    let texts = ["speedup", "--backend", "cpu", "--text", "w5"];
    let output = Command::new(env!("CARGO_BIN_EXE_paf")).args(texts).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--checkpoint"), "{}", text(&output.stderr));
}
