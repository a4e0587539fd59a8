//! Strategies for damage to files: runs of bytes, and values of JSON that no field should have.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How many damaged inputs of a kind are tried: `PAF_FUZZ_INPUTS`, or 20,000; of these the `share` of one test.
pub fn settings(share: f64) -> ProptestConfig {
    let inputs = std::env::var("PAF_FUZZ_INPUTS").map_or(20_000, |n| n.parse().expect("PAF_FUZZ_INPUTS is a number"));
    let cases = (f64::from(inputs) * share).ceil() as u32;
    ProptestConfig { cases, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() }
}

/// Values that no field should have, some of which one may.
pub fn strange() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => select(vec![
            json!(null),
            json!(true),
            json!(false),
            json!(0),
            json!(1),
            json!(3),
            json!(-1),
            json!(0.5),
            json!(1e300),
            json!(u64::MAX),
            json!(u32::MAX),
            json!(1u64 << 20),
            json!((1u64 << 20) + 1),
            json!(1u64 << 62),
            json!(""),
            json!("gelu"),
            json!("relu"),
            json!("../../etc/passwd"),
            json!([]),
            json!([[]]),
            json!({}),
            json!({"rope_type": "yarn"}),
            json!({"rope_theta": -1}),
        ]),
        4 => (0u64..200).prop_map(|n| json!(n)),
        1 => prop::collection::vec(any::<char>(), 0..300).prop_map(|chars| Value::String(chars.into_iter().collect())),
    ]
}

/// Damage to a run of bytes.
#[derive(Debug, Clone)]
pub enum Bytes {
    Cut(Index),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index),
}

impl Bytes {
    /// Damages `bytes`, of which there is at least one.
    pub fn apply(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Self::Flip(at, mask) => {
                let at = at.index(bytes.len());
                bytes[at] ^= mask;
            }
            Self::Insert(at, new) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, new);
            }
            Self::Remove(at) => {
                bytes.remove(at.index(bytes.len()));
            }
        }
    }
}

pub fn bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        any::<Index>().prop_map(Bytes::Cut),
        (any::<Index>(), 1u8..).prop_map(|(at, mask)| Bytes::Flip(at, mask)),
        (any::<Index>(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, new)| Bytes::Insert(at, new)),
        any::<Index>().prop_map(Bytes::Remove),
    ]
}

/// A folder in memory, where the system has such: on a disk most of the time of a hundred thousand files would be its own.
pub fn fast_folder() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}
