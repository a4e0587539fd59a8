//! Files of made-up kernels.

use serde_json::{Value, json};

use super::*;
use crate::config::preset;
use crate::measure::machine;

pub fn slice(stream: &str, part: &str, start_us: f64, end_us: f64) -> Slice {
    let arguments = Arguments {
        kernel: "kernel".into(),
        layer: 3,
        part: part.into(),
        shape: "128 × 4096 × 1024".into(),
        tokens: 128,
        grid: [132, 1],
        cluster: 2,
        block: 384,
        shared_bytes: 200_000,
        registers: 168,
        overlap: true,
        ..Arguments::default()
    };
    let (layer, part, kernel) = (arguments.layer, arguments.part.clone(), arguments.kernel.clone());
    Slice { stream: stream.into(), start_us, end_us, layer, part, kernel, arguments }
}

/// A file of a few kernels.
pub fn example() -> Trace {
    trace(&slices())
}

fn trace(slices: &[Slice]) -> Trace {
    let spread = Spread { median: 30.0, low: 29.5, high: 31.0, confidence: 0.95 };
    let about = About {
        model: Some("roberta-large".into()),
        config: Config::of(&preset("roberta-large").unwrap().config, false),
        design: "paf-post".into(),
        schedule: "auto".into(),
        plan: "two-stream".into(),
        mode: "graph".into(),
        dtype: "bf16".into(),
        batch: 1,
        seq_len: 128,
        packed: false,
        tokens: 128,
        source: "made up".into(),
        assigned_by: "hand".into(),
        forward_us: spread,
        summary: Summary::of(slices),
    };
    Trace::new(Run::begin(SCHEMA, machine::host()), about, slices)
}

fn slices() -> Vec<Slice> {
    vec![
        slice("attention", "qkv", 0.0, 6.25),
        // Begun before the one before it has ended.
        slice("attention", "attention", 4.0, 10.0),
        slice("attention", "wo", 10.0, 15.0),
        slice("ffn", "w1", 5.0, 9.0),
        slice("attention", "join", 16.0, 18.5),
    ]
}

#[test]
fn the_file_is_in_chromes_format() {
    let file: Value = serde_json::from_str(&trace(&slices()).json()).unwrap();
    assert_eq!((&file["schema"], &file["displayTimeUnit"]), (&json!(SCHEMA), &json!("ns")));
    assert_eq!((&file["otherData"]["source"], &file["otherData"]["tokens"]), (&json!("made up"), &json!(128)));
    let events = file["traceEvents"].as_array().unwrap();
    assert_eq!(events[0]["name"], "process_name");
    assert_eq!(events[0]["args"]["name"], file["machine"]["cpu"]);
    let named = |name: &str| events.iter().filter(|event| event["name"] == name).collect::<Vec<_>>();
    let tracks: Vec<_> = named("thread_name").iter().map(|event| (&event["tid"], &event["args"]["name"])).collect();
    assert_eq!(
        tracks,
        [
            (&json!(1), &json!("stream attention")),
            (&json!(2), &json!("stream attention, begun early")),
            (&json!(3), &json!("stream ffn")),
        ]
    );
    assert!(
        named("thread_sort_index")
            .iter()
            .all(|event| event["ph"] == "M" && event["args"]["sort_index"] == event["tid"])
    );

    let kernels: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
    assert_eq!((kernels.len(), events.len()), (5, 5 + 1 + 2 * 3));
    let first = kernels[0];
    assert_eq!((&first["name"], &first["cat"], &first["tid"]), (&json!("3 qkv"), &json!("qkv"), &json!(1)));
    assert_eq!((&first["ts"], &first["dur"], &first["pid"]), (&json!(0.0), &json!(6.25), &json!(0)));
    assert_eq!(first["args"]["shape"], "128 × 4096 × 1024");
    assert_eq!((&first["args"]["grid"], &first["args"]["block"]), (&json!([132, 1]), &json!(384)));
    // No two slices of a track overlap.
    for tid in 1..=3 {
        let own: Vec<_> = kernels.iter().filter(|kernel| kernel["tid"] == tid).collect();
        let number = |kernel: &Value, field: &str| kernel[field].as_f64().unwrap();
        assert!(own.windows(2).all(|w| number(w[0], "ts") + number(w[0], "dur") <= number(w[1], "ts")), "{own:?}");
    }
}

#[test]
fn a_file_is_read_back() {
    let original = trace(&slices());
    let read: Trace = serde_json::from_str(&original.json()).unwrap();
    assert_eq!(read.events, original.events);
    let mut found = read.slices();
    found.sort_by(|a, b| a.start_us.total_cmp(&b.start_us));
    let mut expected = slices();
    expected.sort_by(|a, b| a.start_us.total_cmp(&b.start_us));
    assert_eq!(found, expected);
    assert_eq!(Summary::of(&found), read.about.summary);
}

#[test]
fn the_words_have_the_numbers() {
    let trace = trace(&slices());
    let text = trace.markdown();
    for part in [
        "| qkv | kernel | 1 | 6.25 |",
        "- roberta-large: 24 layers, 1 × 128, paf-post two-stream graph\n",
        "forward: 30.0 ± 1.0 µs by events, not traced; traced, 18.5 µs",
        "ran for 15.0 µs, of the FFN's for 4.0; one of each for 4.0, 100 % of the shorter",
        "no kernel ran in 5.4 % of the traced time",
        "times: made up; told apart by hand",
    ] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    assert!(trace.table().contains("wo"));
}
