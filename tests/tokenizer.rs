//! Tokenizers that are damaged, or at odds with themselves or the model: each must be a typed error that names the file, what it
//! has, and what was expected; or work. Damaged at random, too (`PAF_FUZZ_INPUTS` times): never a panic, and
//! never memory by a number in the file.

#[path = "common/allocations.rs"]
mod allocations;
#[path = "common/mutate.rs"]
mod mutate;

use std::path::PathBuf;
use std::sync::Once;

use mutate::{Bytes, settings, strange};
use paf_cuda::Error;
use paf_cuda::checkpoint::{CheckpointError, Tokenizer};
use paf_cuda::weights::EmbeddingSizes;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The files of `tests/tokenizers`: every model and most of the steps that the families' tokenizers have.
const CASES: [&str; 5] = ["byte_level", "split_bpe", "unigram", "wordpiece", "words"];
const TEXTS: [&str; 3] = ["The cat sat on the mats.", "  é  12xxx<mask>[MASK] \u{301}\0 日本", "the"];

fn case(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tokenizers").join(name).with_extension("json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn folder(contents: impl AsRef<[u8]>) -> TempDir {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), contents).unwrap();
    folder
}

fn open(tokenizer: &Value) -> Result<Tokenizer, Error> {
    Tokenizer::open(folder(tokenizer.to_string()).path())
}

/// Where a value is in another: keys and indices.
type Pointer = String;

fn pointers(value: &Value) -> Vec<Pointer> {
    fn visit(value: &Value, here: &str, all: &mut Vec<Pointer>) {
        let key = |key: &str| format!("{here}/{}", key.replace('~', "~0").replace('/', "~1"));
        let inside: Vec<(Pointer, &Value)> = match value {
            Value::Object(map) => map.iter().map(|(name, value)| (key(name), value)).collect(),
            Value::Array(values) => values.iter().enumerate().map(|(i, value)| (key(&i.to_string()), value)).collect(),
            _ => Vec::new(),
        };
        for (pointer, value) in inside {
            visit(value, &pointer, all);
            all.push(pointer);
        }
    }
    let mut all = Vec::new();
    visit(value, "", &mut all);
    all
}

/// A change to one of the values inside another.
#[derive(Debug, Clone)]
enum Edit {
    Set(Value),
    /// The value of another place.
    Copy(Index),
    Remove,
    Rename(String),
}

fn edit(tokenizer: &mut Value, at: Index, edit: Edit) {
    let all = pointers(tokenizer);
    if all.is_empty() {
        return;
    }
    let pointer = &all[at.index(all.len())];
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/").replace("~0", "~");
    match edit {
        Edit::Set(value) => *tokenizer.pointer_mut(pointer).unwrap() = value,
        Edit::Copy(from) => {
            let value = tokenizer.pointer(&all[from.index(all.len())]).unwrap().clone();
            *tokenizer.pointer_mut(pointer).unwrap() = value;
        }
        Edit::Remove | Edit::Rename(_) => match tokenizer.pointer_mut(parent).unwrap() {
            Value::Object(map) => {
                let value = map.remove(&key).unwrap();
                if let Edit::Rename(name) = edit {
                    map.insert(name, value);
                }
            }
            Value::Array(values) => {
                values.remove(key.parse().unwrap());
            }
            _ => unreachable!("a pointer's parent has parts"),
        },
    }
}

/// What files have in such places, and what would be strange there.
fn values() -> impl Strategy<Value = Value> {
    const WORDS: [&str; 16] = [
        "",
        "##",
        "a",
        "▁",
        "é",
        "é▁t",
        "t h",
        "[CLS]",
        "<s>",
        "(a",
        "(?:a{1000}){1000}",
        "(a*)*b",
        "^",
        "\\",
        "\u{1f600}",
        "WordPiece",
    ];
    prop_oneof![strange(), select(&WORDS).prop_map(|word| json!(word))]
}

fn edits() -> impl Strategy<Value = Vec<(Index, Edit)>> {
    let edit = prop_oneof![
        4 => values().prop_map(Edit::Set),
        2 => any::<Index>().prop_map(Edit::Copy),
        1 => Just(Edit::Remove),
        1 => values().prop_map(|value| Edit::Rename(value.as_str().map_or("vocab".into(), str::to_owned))),
    ];
    prop::collection::vec((any::<Index>(), edit), 1..4)
}

/// What every damaged tokenizer must do.
fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    thread_local! {
        static FOLDER: TempDir = mutate::fast_folder();
    }
    FOLDER.with(|folder| {
        std::fs::write(folder.path().join("tokenizer.json"), bytes).unwrap();
        allocations::start();
        let result = Tokenizer::open(folder.path()).and_then(|tokenizer| tokenizer.encode(&TEXTS).map(drop));
        let allocations = allocations::since_start();
        match result {
            Ok(()) => {}
            Err(Error::Checkpoint(error)) => prop_assert!(error.to_string().len() < 1500, "{error}"),
            // No text has a token.
            Err(Error::InvalidConfig { field: "Σ lengths", .. }) => {}
            Err(other) => prop_assert!(false, "not an error about a tokenizer: {other:?}"),
        }
        // A pattern becomes an automaton, which the regex crate limits to a few megabytes whatever the file says.
        let patterns = if bytes.windows(7).any(|part| part == b"\"Regex\"") { 32 << 20 } else { 0 };
        let most = 64 * bytes.len() + (1 << 20) + patterns;
        prop_assert!(allocations.largest <= most, "{allocations:?} with {} bytes", bytes.len());
        Ok(())
    })
}

/// Says nothing of panics in the `tokenizers` crate, which become errors; that they do is what is tested.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.location().is_none_or(|place| !place.file().contains("/tokenizers-")) {
                usual(info);
            }
        }));
    });
}

proptest! {
    #![proptest_config(settings(1.0))]

    #[test]
    fn any_part_may_be_anything(
        name in select(&CASES), edits in edits(), damage in prop::option::weighted(0.2, mutate::bytes()),
    ) {
        quiet();
        let mut tokenizer = case(name);
        for (at, change) in edits {
            edit(&mut tokenizer, at, change);
        }
        let mut bytes = tokenizer.to_string().into_bytes();
        damage.into_iter().for_each(|damage: Bytes| damage.apply(&mut bytes));
        check(&bytes)?;
    }
}

#[test]
fn what_is_not_damaged_works() {
    let mut names: Vec<_> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tokenizers"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, CASES);
    for (name, ids) in [
        ("byte_level", &[0, 17, 20, 2][..]),
        ("split_bpe", &[2, 2, 0, 16, 6, 10, 11, 7, 0]),
        ("unigram", &[0, 4, 5, 6, 2]),
        ("wordpiece", &[2, 5, 6, 3]),
        ("words", &[2, 3]),
    ] {
        let text = if name == "byte_level" { " the cat" } else { "the cat" };
        let tokens = open(&case(name)).unwrap().encode(&[text]).unwrap();
        assert_eq!(tokens.ids, ids, "{name}");
    }
}

/// The error that a tokenizer becomes by an edit.
#[track_caller]
fn at_odds(name: &str, edit: impl FnOnce(&mut Value)) -> String {
    let mut tokenizer = case(name);
    edit(&mut tokenizer);
    match open(&tokenizer) {
        Err(Error::Checkpoint(error @ CheckpointError::Field { .. })) => {
            let text = error.to_string();
            assert!(text.contains("tokenizer.json: "), "{text}");
            text
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn tokenizers_at_odds_with_themselves_are_refused() {
    let check = |error: String, expected: &str| assert!(error.ends_with(expected), "{error}\nexpected {expected}");
    // Added tokens: another's id, one that is free, one far beyond.
    check(
        at_odds("wordpiece", |file| file["added_tokens"][4]["id"] = json!(5)),
        "id of the added token \"[MASK]\" is 5, expected 4, as in the vocabulary",
    );
    for id in [24, u32::MAX] {
        check(
            at_odds("byte_level", |file| file["added_tokens"][5]["id"] = json!(id)),
            &format!("id of the added token \"<extra>\" is {id}, expected 23, as in the vocabulary"),
        );
    }
    check(
        at_odds("words", |file| file["added_tokens"][0]["content"] = json!("")),
        "id of the added token \"\" is 0, expected a token of the vocabulary",
    );
    // Special tokens that are put around texts.
    check(
        at_odds("wordpiece", |file| file["post_processor"]["special_tokens"]["[CLS]"]["ids"] = json!([3])),
        "id of the special token \"[CLS]\" is 3, expected 2, as in the vocabulary",
    );
    check(
        at_odds("byte_level", |file| file["post_processor"]["sep"] = json!(["[SEP]", 2])),
        "id of the special token \"[SEP]\" is 2, expected a token of the vocabulary",
    );
    check(
        at_odds("split_bpe", |file| file["post_processor"]["processors"][1]["cls"] = json!(["<BOS>", 1])),
        "id of the special token \"<BOS>\" is 1, expected 2, as in the vocabulary",
    );
    for template in ["single", "pair"] {
        check(
            at_odds("wordpiece", |file| file["post_processor"][template][0]["SpecialToken"]["id"] = json!("[BOS]")),
            "special token of post_processor is \"[BOS]\", expected one of its special_tokens",
        );
    }
    // Unknown ones.
    for name in ["wordpiece", "words", "split_bpe"] {
        check(
            at_odds(name, |file| file["model"]["unk_token"] = json!("[unknown]")),
            "unk_token is \"[unknown]\", expected a token of the vocabulary",
        );
    }
    // Padding and truncation are not done, but have to be of this tokenizer.
    check(
        at_odds("wordpiece", |file| file["padding"]["pad_id"] = json!(19)),
        "id of the padding token \"[PAD]\" is 19, expected 0, as in the vocabulary",
    );
    check(
        at_odds("wordpiece", |file| file["padding"]["pad_token"] = json!("<pad>")),
        "id of the padding token \"<pad>\" is 0, expected a token of the vocabulary",
    );
    check(
        at_odds("wordpiece", |file| file["truncation"]["stride"] = json!(16)),
        "stride of truncation is 16, expected less than max_length, 16",
    );
    // Two tokens with one id.
    check(
        at_odds("wordpiece", |file| file["model"]["vocab"]["cat"] = json!(5)),
        "id of the token \"the\" is 5, expected other than \"cat\"'s",
    );
}

#[test]
fn tokenizers_of_larger_vocabularies_than_the_models_are_refused() {
    let tokenizer = open(&case("byte_level")).unwrap();
    let sizes = |vocab_size| EmbeddingSizes {
        vocab_size,
        max_position_embeddings: None,
        padding_idx: None,
        type_vocab_size: None,
        rotary_positions: None,
    };
    tokenizer.check(&sizes(24)).unwrap();
    let error = tokenizer.check(&sizes(23)).unwrap_err().to_string();
    let expected = "tokenizer.json: id of the token \"<extra>\" is 23, expected less than 23, the model's vocab_size";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn padding_and_truncation_are_not_done() {
    let tokenizer = open(&case("wordpiece")).unwrap();
    let long = ["cat"; 40].join(" ");
    let tokens = tokenizer.encode(&["cat", &long]).unwrap();
    assert_eq!((tokens.shape.length(0), tokens.shape.length(1)), (3, 42));
}

#[test]
fn a_file_that_is_missing_or_no_tokenizer_is_a_typed_error() {
    let folder = TempDir::new().unwrap();
    let error = Tokenizer::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Checkpoint(CheckpointError::Unreadable { .. })), "{error:?}");
    for text in ["", "{}", "{\"version\": \"1.0\", \"model\": {\"type\": \"None\"}}"] {
        std::fs::write(folder.path().join("tokenizer.json"), text).unwrap();
        let error = Tokenizer::open(folder.path()).unwrap_err();
        let malformed = matches!(error, Error::Checkpoint(CheckpointError::Malformed { format: "tokenizer", .. }));
        assert!(malformed, "{error:?}");
    }
}
