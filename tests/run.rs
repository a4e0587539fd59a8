//! `paf run` as a user runs it, over the small checkpoints with a tokenizer of words: results are the library's, in the
//! order of the inputs, whatever the batches; what cannot be run is said where it stands.

#[path = "run/engines.rs"]
mod engines;
#[path = "run/refused.rs"]
mod refused;
#[path = "run/speedup.rs"]
mod speedup;
#[path = "run/timing.rs"]
mod timing;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use paf_cuda::checkpoint::{Checkpoint, Tokenizer, Tokens};
use paf_cuda::cpu::{Model, Pooling};
use paf_cuda::{Design, Schedule};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// One of the small checkpoints, and a tokenizer whose words are `w5` to `w36`.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(name);
        for entry in std::fs::read_dir(source).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        let (specials, ends) = if name.contains("roberta") {
            (["<s>", "<pad>", "</s>", "<unk>", "<mask>"], Some([0, 2]))
        } else if name.contains("bert") {
            (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], Some([2, 3]))
        } else {
            (["<|endoftext|>", "<|1|>", "<|2|>", "<|unk|>", "<|4|>"], None)
        };
        std::fs::write(folder.path().join("tokenizer.json"), tokenizer(specials, ends).to_string()).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, contents).unwrap();
        path
    }

    /// What is in the folder under neither the checkpoint's names nor those given.
    fn leftovers(&self, known: &[&str]) -> Vec<String> {
        let names = std::fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let names = names.map(|name| name.into_string().unwrap());
        let own = ["config.json", "tokenizer.json", "expected.safetensors", "model.safetensors"];
        names.filter(|name| !own.contains(&name.as_str()) && !known.contains(&name.as_str())).collect()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, b"")
    }

    fn run_with(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        self.run_on("cpu", arguments, stdin)
    }

    /// On the engine of that name.
    fn run_on(&self, backend: &str, arguments: &[&str], stdin: &[u8]) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_paf"))
            .args(["run", "--backend", backend, "--checkpoint", self.0.path().to_str().unwrap()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("paf starts");
        // It may end before it reads.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        child.wait_with_output().unwrap()
    }

    /// The results, all of which there are.
    #[track_caller]
    fn results(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
        lines(&output.stdout)
    }

    #[track_caller]
    fn refuses(&self, arguments: &[&str], code: i32, parts: &[&str]) {
        let output = self.run(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{arguments:?}: {part:?} is missing in: {stderr}");
        }
    }

    /// A text that is an error, alone.
    #[track_caller]
    fn refuses_text(&self, given: &str, problem: &str) {
        let output = self.run(&["--text", given]);
        assert_eq!(output.status.code(), Some(1));
        let results = lines(&output.stdout);
        assert!(results[0]["error"].as_str().unwrap().contains(problem), "{}", results[0]);
    }

    /// The library's model and tokenizer.
    fn library(&self, design: Option<Design>) -> Library {
        let mut checkpoint = Checkpoint::open(self.0.path()).unwrap();
        if let Some(design) = design {
            checkpoint = checkpoint.with_design(design).unwrap();
        }
        let model = Model::from_checkpoint(&checkpoint).unwrap();
        Library { model, tokenizer: Tokenizer::open(self.0.path()).unwrap() }
    }
}

struct Library {
    model: Model,
    tokenizer: Tokenizer,
}

impl Library {
    /// Tokens and hidden states of one text.
    fn hidden(&self, text: &str) -> (Tokens, Vec<f32>) {
        let tokens = self.tokenizer.encode(&[text]).unwrap();
        let types = self.model.weights().embeddings.token_type.as_ref().map(|_| tokens.token_types.as_slice());
        let hidden = self.model.forward(Schedule::Serial, &tokens.shape, &tokens.ids, types).unwrap();
        (tokens, hidden)
    }

    fn vector(&self, pooling: Pooling, text: &str) -> Vec<f32> {
        let (tokens, hidden) = self.hidden(text);
        self.model.pool(pooling, &tokens.shape, &hidden).unwrap()
    }

    /// Every id and its probability after the hidden state of one token, the most probable first.
    fn predictions(&self, hidden: &[f32], position: usize) -> Vec<(usize, f64)> {
        let size = self.model.hidden_size();
        let logits = self.model.logits(&hidden[position * size..][..size]).unwrap();
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let mut all: Vec<_> = logits.iter().map(|&logit| f64::from(logit).exp() / sum).enumerate().collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all
    }
}

fn tokenizer(specials: [&str; 5], ends: Option<[usize; 2]>) -> Value {
    let words = specials.iter().map(|token| token.to_string()).chain((5..37).map(|id| format!("w{id}")));
    let vocab: serde_json::Map<_, _> = words.enumerate().map(|(id, word)| (word, json!(id))).collect();
    let added = specials.iter().enumerate().map(|(id, token)| {
        json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    });
    let special = |id: usize| json!({ "SpecialToken": { "id": specials[id], "type_id": 0 } });
    let template = ends.map(|[first, last]| {
        let ids = |id: usize| json!({ "id": specials[id], "ids": [id], "tokens": [specials[id]] });
        json!({
            "type": "TemplateProcessing",
            "single": [special(first), { "Sequence": { "id": "A", "type_id": 0 } }, special(last)],
            "pair": [special(first), { "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
            "special_tokens": { specials[first]: ids(first), specials[last]: ids(last) },
        })
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": template,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": specials[if ends == Some([0, 2]) { 3 } else { 1 }] },
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("paf writes UTF-8")
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    text(bytes).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[track_caller]
fn close(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= 1e-5, "element {i} is {got}, expected {expected}");
    }
}

/// Texts of different lengths.
const TEXTS: [&str; 5] = ["w5", "w6 w7 w8 w9 w10 w11", "w36 w5", "w12 w13 w14", "w6 w7 w8 w9 w10 w11 w12 w30 w31 w32"];

fn json_lines() -> String {
    TEXTS.iter().map(|text| json!({ "id": 7, "text": text, "body": "w9 w9" }).to_string() + "\n").collect()
}

fn each_text() -> Vec<&'static str> {
    TEXTS.iter().flat_map(|text| ["--text", text]).collect()
}

#[test]
fn vectors_are_the_library_s_alone_and_in_batches_in_order() {
    for (name, task) in
        [("bert_encoder", None), ("roberta", Some("embed")), ("falcon_new", Some("embed")), ("phi_base", None)]
    {
        let folder = Folder::new(name);
        let input = folder.write("texts.jsonl", json_lines());
        let library = folder.library(None);
        let task: Vec<_> = task.into_iter().flat_map(|task| ["--task", task]).collect();
        for batch_tokens in ["1", "7", "2048"] {
            let arguments = [&["--input", &input, "--batch-tokens", batch_tokens], &task[..]].concat();
            let results = folder.results(&arguments);
            assert_eq!(results.len(), TEXTS.len());
            for (i, (result, text)) in results.iter().zip(TEXTS).enumerate() {
                assert_eq!(result["line"], i + 1);
                assert_eq!(result["tokens"], library.hidden(text).0.ids.len());
                assert_eq!(result.as_object().unwrap().len(), 3, "{result}");
                close(&numbers(&result["embedding"]), &library.vector(Pooling::Mean, text));
            }
        }
        let arguments = [&each_text()[..], &task].concat();
        assert_eq!(folder.results(&arguments), folder.results(&[&["--input", &input], &task[..]].concat()));
    }
}

#[test]
fn pooling_and_normalization_are_what_was_asked_for() {
    let folder = Folder::new("bert");
    let library = folder.library(None);
    let arguments = ["--task", "embed", "--pooling", "cls", "--normalize"];
    let results = folder.results(&[&each_text()[..], &arguments].concat());
    for (result, text) in results.iter().zip(TEXTS) {
        let mut expected = library.vector(Pooling::Cls, text);
        let norm = expected.iter().map(|x| x * x).sum::<f32>().sqrt();
        expected.iter_mut().for_each(|x| *x /= norm);
        close(&numbers(&result["embedding"]), &expected);
    }
}

#[test]
fn masks_get_the_library_s_most_probable_tokens() {
    for (name, mask) in [("bert", "[MASK]"), ("roberta", "<mask>")] {
        let folder = Folder::new(name);
        let library = folder.library(None);
        let texts = [format!("w5 {mask} w7"), format!("{mask} w8 w9 {mask}"), format!("w5 {mask} w7")];
        let mut arguments: Vec<_> = texts.iter().flat_map(|text| ["--text", text]).collect();
        arguments.extend(["--top-k", "3"]);
        let results = folder.results(&arguments);
        assert_eq!(results.len(), 3);
        for (text, result) in texts.iter().zip(&results) {
            let (tokens, hidden) = library.hidden(text);
            let positions: Vec<_> = (0..tokens.ids.len()).filter(|&i| tokens.ids[i] == 4).collect();
            let masks = result["masks"].as_array().unwrap();
            assert_eq!(masks.len(), positions.len());
            for (mask, position) in masks.iter().zip(positions) {
                assert_eq!(mask["position"], position);
                check_predictions(&mask["predictions"], &library, &hidden, position, 3);
            }
        }
        assert_eq!(results[0]["masks"], results[2]["masks"]);
        // Another token as the mask; five predictions unless asked otherwise.
        let other = folder.results(&["--text", "w9 w5", "--mask-token", "w9"]);
        check_predictions(&other[0]["masks"][0]["predictions"], &library, &library.hidden("w9 w5").1, 1, 5);
    }
}

#[test]
fn decoders_say_what_comes_next() {
    for name in ["gpt_neox", "gpt_neox_serial", "gptj", "phi", "falcon"] {
        let folder = Folder::new(name);
        let library = folder.library(None);
        let results = folder.results(&[&each_text()[..], &["--top-k", "37", "--batch-tokens", "9"]].concat());
        for (text, result) in TEXTS.into_iter().zip(&results) {
            let (tokens, hidden) = library.hidden(text);
            check_predictions(&result["predictions"], &library, &hidden, tokens.ids.len() - 1, 37);
        }
        assert_eq!(results.len(), TEXTS.len());
    }
}

#[track_caller]
fn check_predictions(got: &Value, library: &Library, hidden: &[f32], position: usize, k: usize) {
    let got = got.as_array().unwrap();
    let expected = library.predictions(hidden, position);
    assert_eq!(got.len(), k);
    for (got, (id, probability)) in got.iter().zip(expected) {
        assert_eq!(got["id"], id);
        assert_eq!(got["token"].as_str(), library.tokenizer.id_to_token(id as u32).as_deref());
        assert!((got["probability"].as_f64().unwrap() - probability).abs() <= 1e-5, "{got}, expected {probability}");
    }
}

#[test]
fn matrices_hold_what_the_lines_hold() {
    let folder = Folder::new("roberta_encoder");
    let arguments = |format: &'static str| [&each_text()[..], &["--format", format]].concat();
    let expected: Vec<_> =
        folder.results(&arguments("jsonl")).iter().flat_map(|result| numbers(&result["embedding"])).collect();
    let floats = |bytes: &[u8]| -> Vec<f32> { bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect() };

    let npy = folder.path("vectors.npy");
    assert!(folder.results(&[&arguments("npy")[..], &["--output", &npy]].concat()).is_empty());
    let bytes = std::fs::read(&npy).unwrap();
    let header = String::from_utf8_lossy(&bytes[10..128]);
    assert_eq!(header.trim_end(), "{'descr': '<f4', 'fortran_order': False, 'shape': (5, 24), }");
    assert_eq!(floats(&bytes[128..]), expected);
    assert_eq!(folder.run(&arguments("npy")).stdout, bytes, "the same on stdout");

    let tensors = folder.path("vectors.safetensors");
    let as_paf = ["--output", &tensors, "--as-paf"];
    for (more, design) in [(&as_paf[..2], "saf-post"), (&as_paf, "paf-post")] {
        assert!(folder.results(&[&arguments("safetensors")[..], more].concat()).is_empty());
        let bytes = std::fs::read(&tensors).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["design"], design);
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = tensors.tensor("embeddings").unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, &[5, 24][..]));
        assert_eq!(floats(tensor.data()) == expected, design == "saf-post");
    }

    let jsonl = folder.path("vectors.jsonl");
    assert!(folder.results(&[&arguments("jsonl")[..], &["--output", &jsonl]].concat()).is_empty());
    assert_eq!(std::fs::read(&jsonl).unwrap(), folder.run(&arguments("jsonl")).stdout);
    assert!(folder.leftovers(&["vectors.npy", "vectors.safetensors", "vectors.jsonl"]).is_empty());
}

#[test]
fn the_parallel_design_differs_and_is_named() {
    for name in ["paf_bert", "roberta"] {
        let folder = Folder::new(name);
        let library = folder.library(Some(Design::PafPostNorm));
        let arguments = [&each_text()[..], &["--task", "embed"]].concat();
        let serial = folder.results(&arguments);
        let output = folder.run(&[&arguments[..], &["--as-paf"]].concat());
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stderr).contains("training"), "{}", text(&output.stderr));
        for ((result, serial), text) in lines(&output.stdout).iter().zip(&serial).zip(TEXTS) {
            assert_eq!((&result["design"], serial.get("design")), (&json!("paf-post"), None));
            let (vector, serial) = (numbers(&result["embedding"]), numbers(&serial["embedding"]));
            close(&vector, &library.vector(Pooling::Mean, text));
            assert!(vector.iter().zip(&serial).any(|(a, b)| (a - b).abs() > 1e-2));
        }
    }
    Folder::new("gptj").refuses(&["--text", "w5", "--as-paf"], 2, &["gptj", "paf-post", "paf-pre"]);
    Folder::new("gpt_neox_serial").refuses(&["--text", "w5", "--as-paf"], 2, &["gpt_neox", "saf-pre"]);
}

#[test]
fn another_field_may_hold_the_text() {
    let folder = Folder::new("bert_encoder");
    let input = folder.write("texts.jsonl", json_lines());
    let results = folder.results(&["--input", &input, "--field", "body"]);
    let expected = folder.library(None).vector(Pooling::Mean, "w9 w9");
    results.iter().for_each(|result| close(&numbers(&result["embedding"]), &expected));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let folder = Folder::new("bert_encoder");
    let input = folder.write("texts.jsonl", json_lines().repeat(200));
    let mut child = Command::new(env!("CARGO_BIN_EXE_paf"))
        .args(["run", "--backend", "cpu", "--checkpoint", folder.0.path().to_str().unwrap(), "--input", &input])
        .args(["--batch-tokens", "64"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

#[test]
#[ignore = "needs the model: make test-minilm"]
fn a_real_model_gives_the_vectors_that_transformers_gives() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("sentences.jsonl");
    let sentences = std::fs::read_to_string(root.join("tests/minilm/sentences.txt")).unwrap();
    let lines = sentences.lines().map(|sentence| json!({ "text": sentence }).to_string() + "\n");
    std::fs::write(&input, lines.collect::<String>()).unwrap();
    let vectors = folder.path().join("vectors.safetensors");
    let status = Command::new(env!("CARGO_BIN_EXE_paf"))
        .args(["run", "--backend", "cpu", "--normalize", "--format", "safetensors", "--batch-tokens", "100"])
        .arg("--checkpoint")
        .arg(root.join(".minilm/model"))
        .arg("--input")
        .arg(&input)
        .arg("--output")
        .arg(&vectors)
        .status()
        .unwrap();
    assert!(status.success());
    let read = |path: PathBuf, name: &str| -> Vec<f32> {
        let bytes = std::fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, &[50, 384][..]));
        tensor.data().as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect()
    };
    close(&read(vectors, "embeddings"), &read(root.join("tests/minilm/expected.safetensors"), "vectors"));
}
