//! What `paf run` does not run, and says so: bad inputs among others, tasks and files that do not fit.

use super::*;

#[test]
fn other_inputs_run_beside_bad_ones() {
    let folder = Folder::new("bert");
    let long = vec!["w5"; 16].join(" ");
    let contents = [
        br#"{"text": "w5 w6"}"#.to_vec(),
        br#"{"text": ""}"#.to_vec(),
        b"".to_vec(),
        b"{\"text\": \"\xff\"}".to_vec(),
        br#"{"text": "#.to_vec(),
        br#"{"body": "w5"}"#.to_vec(),
        br#"{"text": ["w5"]}"#.to_vec(),
        br#""w5""#.to_vec(),
        json!({ "text": long }).to_string().into_bytes(),
        b"{\"text\": \"w7\"}\r".to_vec(),
    ]
    .join(&b'\n');
    let problems = [
        (2, "empty"),
        (4, "invalid UTF-8 at byte 11"),
        (5, "not valid JSON"),
        (6, "no field \"text\""),
        (7, "an array, expected a string"),
        (8, "a string, expected an object"),
        (9, "18 tokens, the model has positions for 17"),
    ];
    let input = folder.write("texts.jsonl", &contents);
    let good = folder.results(&["--task", "embed", "--text", "w5 w6", "--text", "w7"]);
    let file = folder.path("results.jsonl");
    for (arguments, stdin, name) in [
        (vec!["--input", &input, "--task", "embed"], &b""[..], "texts.jsonl"),
        (vec!["--input", "-", "--task", "embed", "--batch-tokens", "1"], &contents, "standard input"),
        (vec!["--input", &input, "--task", "embed", "--output", &file], b"", "texts.jsonl"),
    ] {
        let output = folder.run_with(&arguments, stdin);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let results =
            if arguments.contains(&"--output") { lines(&std::fs::read(&file).unwrap()) } else { lines(&output.stdout) };
        let found: Vec<_> = results.iter().map(|result| result["line"].as_u64().unwrap()).collect();
        assert_eq!(found, [1, 2, 4, 5, 6, 7, 8, 9, 10]);
        for (line, problem) in problems {
            let result = results.iter().find(|result| result["line"] == line).unwrap();
            let error = result["error"].as_str().unwrap();
            assert!(error.contains(problem), "{error}");
            assert_eq!(result.as_object().unwrap().len(), 2, "{result}");
            assert!(stderr.contains(&format!("{name}, line {line}: {error}")), "{line} is missing in: {stderr}");
        }
        close(&numbers(&results[0]["embedding"]), &numbers(&good[0]["embedding"]));
        close(&numbers(&results[8]["embedding"]), &numbers(&good[1]["embedding"]));
        assert!(stderr.contains("7 of 9 texts failed"), "{stderr}");
    }

    // A matrix has no place for them: nothing is written, and what was there stays.
    for format in ["npy", "safetensors"] {
        let output = folder.path("vectors");
        let arguments = ["--input", &input, "--task", "embed", "--format", format, "--output", &output];
        folder.refuses(&arguments, 1, &["texts.jsonl, line 2: ", "7 of 9 texts failed; nothing was written"]);
    }
    assert!(folder.leftovers(&["texts.jsonl", "results.jsonl"]).is_empty());
}

#[test]
fn texts_without_a_mask_or_a_token_are_bad_ones() {
    let output = Folder::new("bert").run(&["--text", "w5", "--text", "w5 [MASK]"]);
    assert_eq!(output.status.code(), Some(1));
    let results = lines(&output.stdout);
    assert_eq!(results[0], json!({ "line": 1, "error": "the text has no [MASK]" }));
    assert_eq!(results[1]["masks"][0]["position"], 2);
    assert!(text(&output.stderr).contains("text 1: the text has no [MASK]"));

    let output = Folder::new("gptj").run(&["--text", " ", "--text", "w5"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(lines(&output.stdout)[0], json!({ "line": 1, "error": "the text has no tokens" }));
    assert_eq!(lines(&output.stdout)[1]["predictions"].as_array().unwrap().len(), 5);

    // RoBERTa counts positions from behind its padding's.
    let long = vec!["w5"; 14].join(" ");
    Folder::new("roberta_encoder").refuses_text(&long, "16 tokens, the model has positions for 15");
}

#[test]
fn many_bad_lines_are_not_all_told() {
    let folder = Folder::new("bert_encoder");
    let output = folder.run_with(&["--input", "-"], "x\n".repeat(50).as_bytes());
    assert_eq!((output.status.code(), lines(&output.stdout).len()), (Some(1), 50));
    let stderr = text(&output.stderr);
    assert_eq!(stderr.lines().count(), 22, "{stderr}");
    assert!(stderr.contains("30 more") && stderr.contains("50 of 50 texts failed"), "{stderr}");
}

#[test]
fn results_that_are_no_numbers_are_errors() {
    let folder = Folder::new("gpt_neox_serial");
    let path = folder.path("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let (start, _) = metadata.info("gpt_neox.final_layer_norm.weight").unwrap().data_offsets;
    bytes[8 + header + start..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    folder.refuses_text("w5", "not finite");
    let output = folder.path("vectors.npy");
    let arguments = ["--text", "w5", "--task", "embed", "--format", "npy", "--output", &output];
    folder.refuses(&arguments, 1, &["text 1: ", "not finite", "nothing was written"]);
    assert!(folder.leftovers(&[]).is_empty());
}

#[test]
fn a_task_that_the_checkpoint_is_not_for_is_a_usage_error() {
    let refuses = |name: &str, arguments: &[&str], parts: &[&str]| {
        Folder::new(name).refuses(&[&["--text", "w5"], arguments].concat(), 2, parts);
    };
    refuses("bert", &["--task", "next-token"], &["next-token", "encoder (bert)", "fill-mask or embed"]);
    refuses("bert_encoder", &["--task", "fill-mask"], &["without a language-model head", "--task embed"]);
    refuses("bert_encoder", &["--task", "next-token"], &["encoder (bert)", "embed"]);
    refuses("gptj", &["--task", "fill-mask"], &["fill-mask", "decoder (gptj)", "next-token"]);
    refuses("phi_base", &["--task", "next-token"], &["without a language-model head"]);
    refuses("gptj", &["--task", "embed", "--pooling", "cls"], &["cls", "mean"]);
    refuses("bert", &["--normalize"], &["normalize", "fill-mask", "embed"]);
    refuses("bert", &["--pooling", "mean"], &["pooling", "embed"]);
    refuses("bert", &["--format", "npy"], &["format", "embed"]);
    refuses("bert", &["--task", "embed", "--top-k", "3"], &["top_k", "embed"]);
    refuses("bert", &["--task", "embed", "--mask-token", "w5"], &["mask_token"]);
    refuses("bert", &["--mask-token", "nothing"], &["mask_token = \"nothing\"", "tokenizer.json"]);
    refuses("bert", &["--top-k", "0"], &["top_k = 0", "vocab_size = 37"]);
    refuses("bert", &["--top-k", "38"], &["top_k = 38", "vocab_size = 37"]);
    refuses("bert", &["--batch-tokens", "0"], &["batch_tokens = 0"]);
    refuses("bert", &["--input", "-"], &["--input", "--text"]);
    refuses("bert", &["--field", "body"], &["--field", "--text"]);
    Folder::new("bert").refuses(&[], 2, &["--text", "--input"]);
}

#[test]
fn files_that_are_missing_or_another_s_are_named() {
    let folder = Folder::new("bert");
    let missing = folder.path("missing.jsonl");
    folder.refuses(&["--input", &missing], 1, &["cannot read", "missing.jsonl"]);
    let empty = folder.write("empty.jsonl", "\n  \n");
    folder.refuses(&["--input", &empty], 1, &["empty.jsonl has no lines"]);
    let nowhere = folder.path("missing/vectors.npy");
    folder.refuses(&["--text", "w5 [MASK]", "--output", &nowhere], 1, &["cannot write", "missing/vectors.npy"]);

    let config = std::fs::read_to_string(folder.path("config.json")).unwrap();
    folder.write("config.json", config.replace("\"bert\"", "\"t5\""));
    folder.refuses(&["--text", "w5"], 2, &["config.json", "\"t5\" is not known", "gpt_neox"]);
    std::fs::remove_file(folder.path("config.json")).unwrap();
    folder.refuses(&["--text", "w5"], 1, &["config.json"]);
    folder.write("config.json", &config);
    // A tokenizer with more tokens than the model, a damaged one, none.
    let tokenizer = std::fs::read_to_string(folder.path("tokenizer.json")).unwrap();
    folder.write("tokenizer.json", tokenizer.replace("\"w36\":36", "\"w36\":37"));
    let parts = ["another model's", "tokenizer.json", "id of the token \"w36\" is 37, expected less than 37"];
    folder.refuses(&["--text", "w5 [MASK]"], 2, &parts);
    folder.write("tokenizer.json", "{}");
    folder.refuses(&["--text", "w5"], 1, &["tokenizer.json is not valid tokenizer"]);
    std::fs::remove_file(folder.path("tokenizer.json")).unwrap();
    folder.refuses(&["--text", "w5"], 1, &["tokenizer", "tokenizer.json"]);
}
