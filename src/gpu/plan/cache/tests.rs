use std::collections::HashSet;
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::config::Schedule;

fn key() -> Key {
    Key {
        build: build().to_owned(),
        device: DeviceKey {
            name: "a device".into(),
            uuid: uuid(0),
            compute_capability: (9, 0),
            multiprocessors: 132,
            driver: "CUDA 13.0, 580.159".into(),
            portable: false,
        },
        stack: StackKey {
            design: "paf-post".into(),
            num_hidden_layers: 24,
            hidden_size: 1024,
            num_attention_heads: 16,
            num_key_value_heads: 8,
            head_dim: 64,
            intermediate_size: 4096,
            gated: false,
            hidden_act: "gelu".into(),
            causal: false,
            rotary_dim: 32,
            rotary_interleaved: false,
            dtype: "bf16".into(),
        },
        batch: BatchKey::of(&BatchShape::packed(vec![128, 100]).unwrap()),
    }
}

fn uuid(i: usize) -> String {
    format!("GPU-{i:032x}")
}

/// The same key with another device of the same kind.
fn other_device(i: usize) -> Key {
    Key { device: DeviceKey { uuid: uuid(i), ..key().device }, ..key() }
}

fn entry(key: Key) -> Entry {
    let plan = "fused attention=sm90:rows64 wide-first=sm90:128x96:share1x1:stages7".parse().unwrap();
    let candidates = [(Schedule::Serial.into(), 671.25), (plan, 0.1 + 0.2)];
    let candidates = candidates.map(|(plan, median_us)| Timed { plan, median_us });
    Entry::new(key, Duration::from_secs(2), &plan, &candidates)
}

const BUDGET: Duration = Duration::from_secs(1);

/// What `find` gives for [`key`], and what it says.
fn look(path: &Path) -> (Option<(Plan, Vec<Timed>)>, Vec<String>) {
    let mut warnings = Vec::new();
    let found = find(path, &key(), BUDGET, |_| Ok(true), &mut warnings).unwrap();
    (found, warnings)
}

/// A file with two entries, of which the second is [`key`]'s.
fn filled() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/for/it/plans.json");
    store(&path, entry(other_device(1))).unwrap();
    store(&path, entry(key())).unwrap();
    (folder, path)
}

#[test]
fn what_was_stored_is_found() {
    let (_folder, path) = filled();
    let (found, warnings) = look(&path);
    let (plan, candidates) = found.unwrap();
    assert_eq!(plan.to_string(), entry(key()).plan);
    assert_eq!(candidates.iter().map(|timed| timed.median_us).collect::<Vec<_>>(), [671.25, 0.3]);
    assert_eq!(warnings, [] as [String; 0]);
    // Only for as long as it was measured.
    let mut warnings = Vec::new();
    for (budget_s, found) in [(2, true), (3, false)] {
        let budget = Duration::from_secs(budget_s);
        assert_eq!(find(&path, &key(), budget, |_| Ok(true), &mut warnings).unwrap().is_some(), found);
    }
    assert_eq!(warnings, [] as [String; 0]);
    let files: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["plans.json"], "temporary files were left");
}

#[test]
fn a_file_that_is_not_there_is_no_reason_to_warn() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(look(&folder.path().join("plans.json")), (None, vec![]));
}

#[test]
fn a_new_entry_replaces_its_own_and_keeps_others() {
    let (_folder, path) = filled();
    store(&path, Entry::new(key(), Duration::from_secs(5), &Schedule::Hybrid.into(), &[])).unwrap();
    assert_eq!(look(&path).0.unwrap().0, Schedule::Hybrid.into());
    let keys: Vec<_> = read(&path).0.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, [other_device(1), key()]);
}

#[test]
fn only_so_many_entries_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plans.json");
    let entries = (0..MAX_ENTRIES).map(|i| serde_json::to_value(entry(other_device(i))).unwrap()).collect();
    let contents = Contents { schema: SCHEMA.into(), entries };
    fs::write(&path, serde_json::to_string(&contents).unwrap()).unwrap();
    store(&path, entry(other_device(MAX_ENTRIES))).unwrap();
    let entries = read(&path).0;
    assert_eq!((entries.len(), &entries[0].key), (MAX_ENTRIES, &other_device(1)));
    assert_eq!(entries[MAX_ENTRIES - 1].key, other_device(MAX_ENTRIES));
}

#[test]
fn every_field_of_a_key_counts() {
    type Change = fn(&mut Key);
    let changes: [Change; 24] = [
        |key| key.build.push('x'),
        |key| key.device.name.push('x'),
        |key| key.device.uuid.push('x'),
        |key| key.device.compute_capability.0 = 8,
        |key| key.device.compute_capability.1 = 6,
        |key| key.device.multiprocessors += 1,
        |key| key.device.driver.push('x'),
        |key| key.device.portable = true,
        |key| key.stack.design.push('x'),
        |key| key.stack.num_hidden_layers += 1,
        |key| key.stack.hidden_size += 1,
        |key| key.stack.num_attention_heads += 1,
        |key| key.stack.num_key_value_heads += 1,
        |key| key.stack.head_dim += 1,
        |key| key.stack.intermediate_size += 1,
        |key| key.stack.hidden_act.push('x'),
        |key| key.stack.gated = true,
        |key| key.stack.causal = true,
        |key| key.stack.rotary_dim += 1,
        |key| key.stack.rotary_interleaved = true,
        |key| key.stack.dtype.push('x'),
        |key| key.batch = BatchKey::of(&BatchShape::new(2, 128).unwrap()),
        |key| key.batch = BatchKey::of(&BatchShape::packed(vec![128, 101]).unwrap()),
        |key| key.batch = BatchKey::of(&BatchShape::new(2, 128).unwrap().with_lengths(vec![128, 100]).unwrap()),
    ];
    // As many as there are numbers and texts in the key: a new field needs a line here.
    fn leaves(value: &serde_json::Value) -> usize {
        match value {
            serde_json::Value::Object(fields) => fields.values().map(leaves).sum(),
            serde_json::Value::Array(elements) => elements.len(),
            _ => 1,
        }
    }
    let of_batch = 4;
    assert_eq!(leaves(&serde_json::to_value(key()).unwrap()), changes.len() - 3 + of_batch);

    let (_folder, path) = filled();
    let mut seen = HashSet::from([serde_json::to_string(&key()).unwrap()]);
    for (i, change) in changes.into_iter().enumerate() {
        let mut changed = key();
        change(&mut changed);
        assert!(seen.insert(serde_json::to_string(&changed).unwrap()), "change {i} is no change");
        let mut warnings = Vec::new();
        assert_eq!(find(&path, &changed, BUDGET, |_| Ok(true), &mut warnings).unwrap(), None, "change {i}");
    }
    let batches = [
        BatchShape::new(2, 128).unwrap(),
        BatchShape::new(1, 128).unwrap(),
        BatchShape::new(2, 64).unwrap(),
        BatchShape::new(2, 128).unwrap().with_lengths(vec![128, 128]).unwrap(),
        BatchShape::packed(vec![128, 128]).unwrap(),
        BatchShape::packed(vec![128, 100]).unwrap(),
        BatchShape::packed(vec![100, 128]).unwrap(),
    ];
    let distinct: HashSet<_> =
        batches.iter().map(|shape| serde_json::to_string(&BatchKey::of(shape)).unwrap()).collect();
    assert_eq!(distinct.len(), batches.len());
}

#[test]
fn plans_of_other_builds_and_devices_are_not_used_and_said_so() {
    type Change = fn(&mut Key);
    let cases: [(Change, &str); 3] = [
        (|key| key.build = "0.0.9 0123456789abcdef".into(), "another build's"),
        (|key| key.device.driver.push('1'), "another device's"),
        (|key| key.device.portable = true, "another device's"),
    ];
    for (change, part) in cases {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plans.json");
        let mut foreign = key();
        change(&mut foreign);
        store(&path, entry(foreign)).unwrap();
        let (found, warnings) = look(&path);
        assert_eq!((found, warnings.len()), (None, 1), "{warnings:?}");
        assert!(warnings[0].contains(part) && warnings[0].contains("plans.json"), "{warnings:?}");
        // Once there is one of ours, the other is of no account.
        store(&path, entry(key())).unwrap();
        assert!(look(&path).0.is_some() && look(&path).1.is_empty());
    }
}

#[test]
fn other_versions_and_files_are_not_used_and_said_so() {
    let (_folder, path) = filled();
    let good = fs::read_to_string(&path).unwrap();
    for (contents, part) in [
        (good.replace(SCHEMA, "paf-cuda/plans/0"), "plans/0"),
        (good.replace("\"entries\"", "\"entry\""), "no cache of plans"),
        (String::new(), "no cache of plans"),
        ("[".repeat(100_000), "no cache of plans"),
        (format!("{good}x"), "no cache of plans"),
        (format!("{good}{}", " ".repeat(MAX_BYTES as usize)), "more than"),
    ] {
        fs::write(&path, contents).unwrap();
        let (found, warnings) = look(&path);
        assert_eq!((found, warnings.len()), (None, 1), "{warnings:?}");
        assert!(warnings[0].contains(part), "{warnings:?}");
    }
    fs::write(&path, [0xff, 0xfe, 0]).unwrap();
    assert_eq!((look(&path).0, look(&path).1.len()), (None, 1));
    // And a folder in its place.
    let folder = path.parent().unwrap();
    assert_eq!((look(folder).0, look(folder).1.len()), (None, 1));
    assert!(store(folder, entry(key())).is_err());
    // Whatever was there, the next plan is kept.
    store(&path, entry(key())).unwrap();
    assert!(look(&path).0.is_some() && look(&path).1.is_empty());
}

#[test]
fn damage_to_one_entry_takes_no_other_with_it() {
    let (_folder, path) = filled();
    let good = fs::read_to_string(&path).unwrap();
    // A digit of the other entry's times; what it is keyed by; what it chose.
    for (from, to) in [("671250", "671251"), (uuid(1).as_str(), uuid(2).as_str()), ("rows64 wide", "rows192 wide")] {
        fs::write(&path, good.replacen(from, to, 1)).unwrap();
        let (found, warnings) = look(&path);
        assert!(found.is_some(), "{from}");
        assert_eq!(warnings.len(), 1, "{from}");
        assert!(warnings[0].contains("1 of 2 entries are damaged"), "{warnings:?}");
    }
}

#[test]
fn plans_that_are_none_here_are_not_used_and_said_so() {
    let (_folder, path) = filled();
    let mut warnings = Vec::new();
    assert_eq!(find(&path, &key(), BUDGET, |_| Ok(false), &mut warnings).unwrap(), None);
    assert!(warnings.len() == 1 && warnings[0].contains("wide-first=sm90:128x96"), "{warnings:?}");
    // Signed, but of variants that this build does not have.
    for (plan, candidate) in [("fused w1=sm100:7x7", "fused"), ("fused", "fused w1=sm100:7x7"), ("auto", "serial")] {
        let unknown = Entry { plan: plan.into(), candidates: vec![(candidate.into(), 5)], ..entry(key()) };
        let unknown = Entry { checksum: unknown.checksum(), ..unknown };
        store(&path, unknown).unwrap();
        let (found, warnings) = look(&path);
        assert_eq!((found, warnings.len()), (None, 1), "{warnings:?}");
    }
    // What asking the device gives is passed on.
    store(&path, entry(key())).unwrap();
    let lost = || crate::Error::ContextLost { cause: "a test".into() };
    assert_eq!(find(&path, &key(), BUDGET, |_| Err(lost()), &mut Vec::new()), Err(lost()));
}

#[test]
fn writers_at_the_same_time_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plans.json");
    let torn = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (path, torn) = (&path, &torn);
            scope.spawn(move || {
                for i in 0..8 {
                    store(path, entry(other_device(writer * 8 + i))).unwrap();
                    torn.lock().unwrap().extend(read(path).1);
                }
            });
        }
    });
    assert_eq!(*torn.lock().unwrap(), [] as [String; 0]);
    assert_eq!(read(&path).0.len(), 32);
}

#[test]
fn this_build_has_an_identity() {
    assert!(build().starts_with(env!("CARGO_PKG_VERSION")) && build().len() == env!("CARGO_PKG_VERSION").len() + 17);
    // Published values of FNV-1a.
    assert_eq!(digest(OFFSET, b""), 0xcbf2_9ce4_8422_2325);
    assert_eq!(digest(OFFSET, b"foobar"), 0x8594_4171_f739_67e8);
    assert_eq!(digest(digest(OFFSET, b"foo"), b"bar"), digest(OFFSET, b"foobar"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bits flipped, bytes cut off: the plan that is found, if one is, is the one that was stored; where none is, a warning says
    /// why, unless nothing that matters was changed.
    #[test]
    fn mutated_files_never_give_another_plan(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (_folder, path) = filled();
        let expected = look(&path).0;
        let mut bytes = fs::read(&path).unwrap();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&path, &bytes).unwrap();
        let (found, warnings) = look(&path);
        prop_assert!(found.is_none() || found == expected);
        prop_assert!(found.is_some() || !warnings.is_empty(), "{}", String::from_utf8_lossy(&bytes));
        // And the next one that is measured is kept.
        store(&path, entry(key())).unwrap();
        prop_assert_eq!(look(&path).0, expected);
    }
}
