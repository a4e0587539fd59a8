//! Measured plans in a file, so that a program that starts again need not measure again.
//!
//! One JSON file: a version, and entries, each with all that the choice depends on and a checksum. What cannot be read, does not
//! check, or names variants that are no candidates, is not trusted.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::choice::Plan;
use super::measured::Timed;
use crate::config::BatchShape;
use crate::error::Result;
use crate::gpu::encoder::Encoder;
use crate::gpu::ptx;

/// Version of the file's layout.
const SCHEMA: &str = "paf-cuda/plans/1";
/// Entries that are kept; the oldest go first.
const MAX_ENTRIES: usize = 1024;
/// A larger file is none of ours.
const MAX_BYTES: u64 = 16 << 20;
/// How long to wait for another process that is writing.
const PATIENCE: Duration = Duration::from_secs(1);

/// All that a choice depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Key {
    build: String,
    device: DeviceKey,
    stack: StackKey,
    batch: BatchKey,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceKey {
    name: String,
    uuid: String,
    compute_capability: (u32, u32),
    multiprocessors: u32,
    /// The driver compiles the kernels.
    driver: String,
    portable: bool,
}

/// Numbers that change values but no work (ε, the base of rotary angles) are left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StackKey {
    design: String,
    num_hidden_layers: usize,
    hidden_size: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    hidden_act: String,
    gated: bool,
    causal: bool,
    rotary_dim: usize,
    rotary_interleaved: bool,
    dtype: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchKey {
    batch: usize,
    seq_len: usize,
    /// Digest of the lengths, of which there may be a million; empty where all have `seq_len`.
    lengths: String,
    packed: bool,
}

impl Key {
    pub(super) fn of(encoder: &Encoder, shape: &BatchShape) -> Self {
        let (device, config) = (encoder.device(), encoder.config());
        let (info, layer) = (device.info(), &config.layer);
        let (major, minor) = info.cuda_driver_version;
        Self {
            build: build().to_owned(),
            device: DeviceKey {
                name: info.name.clone(),
                uuid: info.uuid.clone(),
                compute_capability: info.compute_capability,
                multiprocessors: info.multiprocessors,
                driver: format!("CUDA {major}.{minor}, {}", kernel_module_version()),
                portable: device.is_portable(),
            },
            stack: StackKey {
                design: layer.design.name().into(),
                num_hidden_layers: config.num_hidden_layers,
                hidden_size: layer.hidden_size,
                num_attention_heads: layer.num_attention_heads,
                num_key_value_heads: layer.num_key_value_heads,
                head_dim: layer.head_dim,
                intermediate_size: layer.intermediate_size,
                hidden_act: layer.hidden_act.name().into(),
                gated: layer.gated,
                causal: layer.causal,
                rotary_dim: layer.rotary.map_or(0, |rotary| rotary.dim),
                rotary_interleaved: layer.rotary.is_some_and(|rotary| rotary.interleaved),
                dtype: encoder.dtype().name().into(),
            },
            batch: BatchKey::of(shape),
        }
    }
}

impl BatchKey {
    fn of(shape: &BatchShape) -> Self {
        let lengths = shape.lengths().map_or_else(String::new, |lengths| {
            let bytes: Vec<u8> = lengths.iter().flat_map(|&len| (len as u64).to_le_bytes()).collect();
            text(digest(OFFSET, &bytes))
        });
        Self { batch: shape.batch(), seq_len: shape.seq_len(), lengths, packed: shape.is_packed() }
    }
}

/// The kernels of this build, and the code that estimates and launches: what a plan leaves open depends on these.
fn build() -> &'static str {
    static BUILD: OnceLock<String> = OnceLock::new();
    const LAUNCHERS: [&[u8]; 16] = [
        include_bytes!("../plan.rs"),
        include_bytes!("candidates.rs"),
        include_bytes!("../schedule.rs"),
        include_bytes!("../schedule/streams.rs"),
        include_bytes!("../workspace.rs"),
        include_bytes!("../launch.rs"),
        include_bytes!("../tiles.rs"),
        include_bytes!("../gemm.rs"),
        include_bytes!("../gemm/sm80.rs"),
        include_bytes!("../gemm/sm90.rs"),
        include_bytes!("../attention.rs"),
        include_bytes!("../attention/sm80.rs"),
        include_bytes!("../attention/sm90.rs"),
        include_bytes!("../norm.rs"),
        include_bytes!("../rotary.rs"),
        include_bytes!("../gate.rs"),
    ];
    BUILD.get_or_init(|| {
        let kernels = ptx::MODULES.iter().flat_map(|module| [module.name.as_bytes(), module.compressed()]);
        let digest = kernels.chain(LAUNCHERS).fold(OFFSET, digest);
        format!("{} {}", env!("CARGO_PKG_VERSION"), text(digest))
    })
}

/// Version of the driver's kernel module; empty where that is not told.
fn kernel_module_version() -> String {
    fs::read_to_string("/sys/module/nvidia/version").map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a (64 bits), continued: against accidents, not against an adversary.
fn digest(from: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(from, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn text(digest: u64) -> String {
    format!("{digest:016x}")
}

#[derive(Serialize, Deserialize)]
struct Contents {
    schema: String,
    /// Each is understood by itself: one that is damaged takes no other with it.
    entries: Vec<serde_json::Value>,
}

/// A plan that was measured. Times are whole numbers, so that writing and reading them again changes no digit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    key: Key,
    budget_ms: u64,
    unix_time_s: u64,
    plan: String,
    candidates: Vec<(String, u64)>,
    /// Of the entry with an empty one.
    checksum: String,
}

impl Entry {
    pub(super) fn new(key: Key, budget: Duration, plan: &Plan, candidates: &[Timed]) -> Self {
        let nanoseconds = |timed: &Timed| (timed.plan.to_string(), (timed.median_us * 1e3).round() as u64);
        let entry = Self {
            key,
            budget_ms: milliseconds(budget),
            unix_time_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            plan: plan.to_string(),
            candidates: candidates.iter().map(nanoseconds).collect(),
            checksum: String::new(),
        };
        Self { checksum: entry.checksum(), ..entry }
    }

    fn checksum(&self) -> String {
        let unsigned = Self { checksum: String::new(), ..self.clone() };
        let json = serde_json::to_string(&unsigned).expect("an entry holds only numbers and strings");
        text(digest(OFFSET, json.as_bytes()))
    }

    fn understood(value: &serde_json::Value) -> Option<Self> {
        Self::deserialize(value).ok().filter(|entry| entry.checksum == entry.checksum())
    }

    /// What it says, if all of it can be read.
    fn plans(&self) -> Option<(Plan, Vec<Timed>)> {
        let timed = |(plan, nanoseconds): &(String, u64)| {
            Some(Timed { plan: plan.parse().ok()?, median_us: *nanoseconds as f64 / 1e3 })
        };
        Some((self.plan.parse().ok()?, self.candidates.iter().map(timed).collect::<Option<_>>()?))
    }
}

fn milliseconds(budget: Duration) -> u64 {
    u64::try_from(budget.as_millis()).unwrap_or(u64::MAX)
}

/// The entries of a file that are whole, and what to say about the others.
fn read(path: &Path) -> (Vec<Entry>, Option<String>) {
    let contents = File::open(path).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    let nothing = |why: String| (Vec::new(), Some(format!("{}: {why}: not used", path.display())));
    let bytes = match contents {
        Err(error) if error.kind() == ErrorKind::NotFound => return (Vec::new(), None),
        Err(error) => return nothing(error.to_string()),
        Ok(bytes) if bytes.len() as u64 > MAX_BYTES => return nothing(format!("more than {MAX_BYTES} bytes")),
        Ok(bytes) => bytes,
    };
    let contents = match serde_json::from_slice::<Contents>(&bytes) {
        Err(error) => return nothing(format!("no cache of plans ({error})")),
        Ok(contents) if contents.schema != SCHEMA => {
            return nothing(format!("schema {:?}, this build has {SCHEMA:?}", contents.schema));
        }
        Ok(contents) => contents,
    };
    let entries: Vec<_> = contents.entries.iter().filter_map(Entry::understood).collect();
    let damaged = contents.entries.len() - entries.len();
    let warning = format!("{}: {damaged} of {} entries are damaged: not used", path.display(), contents.entries.len());
    (entries, (damaged > 0).then_some(warning))
}

/// The plan that was measured for `key`, for at least `budget`, if `allows` still has it.
pub(super) fn find(
    path: &Path,
    key: &Key,
    budget: Duration,
    allows: impl Fn(&Plan) -> Result<bool>,
    warnings: &mut Vec<String>,
) -> Result<Option<(Plan, Vec<Timed>)>> {
    let (entries, warning) = read(path);
    warnings.extend(warning);
    let Some(entry) = entries.iter().rfind(|entry| entry.key == *key) else {
        let alike = |entry: &&Entry| entry.key.stack == key.stack && entry.key.batch == key.batch;
        if let Some(other) = entries.iter().rfind(alike) {
            let (what, found, wanted) = if other.key.build != key.build {
                ("build", other.key.build.clone(), key.build.clone())
            } else {
                ("device", format!("{:?}", other.key.device), format!("{:?}", key.device))
            };
            let name = path.display();
            warnings.push(format!("{name}: the plan of these layers and this batch is another {what}'s: not used ({found}; this is {wanted})"));
        }
        return Ok(None);
    };
    if entry.budget_ms < milliseconds(budget) {
        return Ok(None);
    }
    if let Some((plan, candidates)) = entry.plans()
        && allows(&plan)?
    {
        return Ok(Some((plan, candidates)));
    }
    warnings.push(format!(
        "{}: plan {:?} is none that these layers can have here: not used",
        path.display(),
        entry.plan
    ));
    Ok(None)
}

/// Adds the entry, in place of one with its key; those of others stay.
pub(super) fn store(path: &Path, entry: Entry) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder)?;
    // The lock on the folder ends with the handle. Whoever does not get it writes nevertheless: the file is whole in any case, and
    // what is lost is another's entry, which is measured again.
    let lock = File::open(folder)?;
    let asked = Instant::now();
    while lock.try_lock().is_err() && asked.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
    let (mut entries, _) = read(path);
    entries.retain(|other| other.key != entry.key);
    entries.push(entry);
    entries.drain(..entries.len().saturating_sub(MAX_ENTRIES));
    let entries = entries.iter().map(serde_json::to_value).collect::<serde_json::Result<_>>()?;
    let json = serde_json::to_string_pretty(&Contents { schema: SCHEMA.into(), entries })? + "\n";
    replace(path, folder, json.as_bytes())
}

/// Whoever reads the file sees the old contents or the new, never a part. What a power failure leaves of it is found damaged, so
/// that nothing has to be synchronised.
fn replace(path: &Path, folder: &Path, contents: &[u8]) -> io::Result<()> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = path.file_name().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "no name of a file"))?;
    let unique = format!("{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let temporary = folder.join(format!(".{}.{unique}.part", name.to_string_lossy()));
    let written = File::create_new(&temporary)
        .and_then(|mut file| file.write_all(contents))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // Nothing is left behind; the first error is the one that matters.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests;
