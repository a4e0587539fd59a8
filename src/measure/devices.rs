//! What devices can do at most, by their data sheets: for predictions where none is present.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A device as far as a prediction needs it.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Description {
    /// Its name, as the driver gives it.
    pub name: String,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Matrix products of 16-bit elements, dense, with fp32 accumulation, FLOP/s.
    pub flops_per_s: f64,
    /// Memory traffic, reads and writes together, bytes/s.
    pub bytes_per_s: f64,
    /// Level-2 cache, bytes.
    pub l2_bytes: u64,
    /// Least time from the begin of one kernel to that of the next one that depends on it, in a CUDA graph, µs.
    pub kernel_us: f64,
    /// Where the numbers come from.
    pub source: String,
    /// Where `kernel_us` comes from.
    pub kernel_source: String,
}

/// Least time from kernel to dependent kernel, µs: empty kernels of 132 blocks in a chain, as a graph, on an H200, driver 580.
const PLAIN_KERNEL_US: f64 = 0.98;
/// The same where the second is launched before the first has ended (programmatic dependent launch), which Hopper can.
const EARLY_KERNEL_US: f64 = 0.60;

const PLAIN_SOURCE: &str =
    "0.98 µs: a chain of empty kernels in a CUDA graph, measured on an H200 and assumed to hold here";
const EARLY_SOURCE: &str =
    "0.60 µs: a chain of empty kernels in a CUDA graph with programmatic dependent launch, measured on an H200";
const EARLY_SOURCE_ELSEWHERE: &str = "0.60 µs: a chain of empty kernels in a CUDA graph with programmatic dependent launch, \
                                      measured on an H200 and assumed to hold here";

/// A line of the table of devices.
struct Row {
    /// For `--device`.
    key: &'static str,
    name: &'static str,
    multiprocessors: u32,
    tflops: f64,
    gb_per_s: f64,
    l2_mib: u64,
    kernel: (f64, &'static str),
    source: &'static str,
}

const ROWS: [Row; 5] = [
    Row {
        key: "h200",
        name: "NVIDIA H200",
        multiprocessors: 132,
        tflops: 989.4,
        gb_per_s: 4800.0,
        l2_mib: 60,
        kernel: (EARLY_KERNEL_US, EARLY_SOURCE),
        source: "NVIDIA H200 Tensor Core GPU datasheet, SXM (BFLOAT16 1,979 TFLOPS with sparsity; 4.8 TB/s); L2 as the driver reports it",
    },
    Row {
        key: "h100",
        name: "NVIDIA H100 80GB HBM3",
        multiprocessors: 132,
        tflops: 989.4,
        gb_per_s: 3350.0,
        l2_mib: 50,
        kernel: (EARLY_KERNEL_US, EARLY_SOURCE_ELSEWHERE),
        source: "NVIDIA H100 Tensor Core GPU datasheet, SXM (BFLOAT16 1,979 TFLOPS with sparsity; 3.35 TB/s); architecture white paper",
    },
    Row {
        key: "a100",
        name: "NVIDIA A100-SXM4-80GB",
        multiprocessors: 108,
        tflops: 312.0,
        gb_per_s: 2039.0,
        l2_mib: 40,
        kernel: (PLAIN_KERNEL_US, PLAIN_SOURCE),
        source: "NVIDIA A100 Tensor Core GPU datasheet, 80GB SXM (BFLOAT16 312 TFLOPS; 2,039 GB/s); architecture white paper",
    },
    Row {
        key: "l40s",
        name: "NVIDIA L40S",
        multiprocessors: 142,
        tflops: 362.05,
        gb_per_s: 864.0,
        l2_mib: 96,
        kernel: (PLAIN_KERNEL_US, PLAIN_SOURCE),
        source: "NVIDIA L40S datasheet (BFLOAT16 362.05 TFLOPS, 733 with sparsity; 864 GB/s); Ada architecture white paper",
    },
    Row {
        key: "rtx4090",
        name: "NVIDIA GeForce RTX 4090",
        multiprocessors: 128,
        tflops: 165.2,
        gb_per_s: 1008.0,
        l2_mib: 72,
        kernel: (PLAIN_KERNEL_US, PLAIN_SOURCE),
        source: "NVIDIA Ada GPU architecture white paper, appendix A (BF16 with FP32 accumulate 165.2 TFLOPS; 1,008 GB/s)",
    },
];

/// The names that [`known`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|row| row.key)
}

/// The description of a device by its short name, such as `h200`.
pub fn known(name: &str) -> Option<Description> {
    let row = ROWS.iter().find(|row| row.key == name)?;
    Some(Description {
        name: row.name.into(),
        multiprocessors: row.multiprocessors,
        flops_per_s: row.tflops * 1e12,
        bytes_per_s: row.gb_per_s * 1e9,
        l2_bytes: row.l2_mib << 20,
        kernel_us: row.kernel.0,
        source: row.source.into(),
        kernel_source: row.kernel.1.into(),
    })
}

/// A field that is not what it should be.
fn refuse(field: &'static str, got: impl ToString, expected: &str) -> Error {
    Error::InvalidConfig { field, got: got.to_string(), expected: format!("{expected} (device description)") }
}

impl Description {
    /// Reads a description in JSON: an object of this struct's fields, of which `kernel_us` and the sources may be absent.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], naming the field, if one is missing, unknown, of another type, or not a positive number.
    pub fn parse(text: &str) -> Result<Self> {
        const FIELDS: [&str; 8] = [
            "name",
            "multiprocessors",
            "flops_per_s",
            "bytes_per_s",
            "l2_bytes",
            "kernel_us",
            "source",
            "kernel_source",
        ];
        let fields: Map<String, Value> = match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => fields,
            Ok(other) => return Err(refuse("description", other, "a JSON object")),
            Err(error) => return Err(refuse("description", error, "JSON")),
        };
        if let Some(unknown) = fields.keys().find(|key| !FIELDS.contains(&key.as_str())) {
            return Err(refuse("description's field", format!("{unknown:?}"), &FIELDS.join(", ")));
        }
        let text = |field: &'static str| match fields.get(field) {
            Some(Value::String(text)) if !text.trim().is_empty() => Ok(Some(text.clone())),
            Some(other) => Err(refuse(field, other, "a text")),
            None => Ok(None),
        };
        let number = |field: &'static str, most: f64| match fields.get(field) {
            Some(value) => value
                .as_f64()
                .filter(|number| *number > 0.0 && *number <= most)
                .map(Some)
                .ok_or_else(|| refuse(field, value, &format!("a number above 0, at most {most:e}"))),
            None => Ok(None),
        };
        let whole = |field: &'static str, most: f64| {
            number(field, most)?
                .map(|number| match number.fract() == 0.0 {
                    true => Ok(number as u64),
                    false => Err(refuse(field, number, "a whole number")),
                })
                .transpose()
        };
        let missing = |field: &'static str| move || refuse(field, "missing", "to be there");
        let kernel_us = number("kernel_us", 1e6)?;
        let kernel_source = text("kernel_source")?
            .unwrap_or_else(|| if kernel_us.is_some() { "not stated".into() } else { PLAIN_SOURCE.into() });
        Ok(Self {
            name: text("name")?.ok_or_else(missing("name"))?,
            multiprocessors: whole("multiprocessors", 1e6)?.ok_or_else(missing("multiprocessors"))? as u32,
            flops_per_s: number("flops_per_s", 1e21)?.ok_or_else(missing("flops_per_s"))?,
            bytes_per_s: number("bytes_per_s", 1e18)?.ok_or_else(missing("bytes_per_s"))?,
            l2_bytes: whole("l2_bytes", 1e15)?.ok_or_else(missing("l2_bytes"))?,
            kernel_us: kernel_us.unwrap_or(PLAIN_KERNEL_US),
            source: text("source")?.unwrap_or_else(|| "not stated".into()),
            kernel_source,
        })
    }

    /// A device that is present: its rate by arithmetic, its bandwidth by a copy.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the rate of its tensor cores is not known; what the copy gives.
    #[cfg(feature = "cuda")]
    pub fn of_device(device: &crate::gpu::Device) -> Result<Self> {
        let ceilings = super::roofline::of_device(device)?;
        let info = device.info();
        let flops_per_s = ceilings.flops_per_s.ok_or_else(|| Error::Unsupported {
            what: format!("a prediction for compute capability {:?}", info.compute_capability),
            remedy: "its tensor cores' rate is not known: name a description of it, --device FILE.json".into(),
        })?;
        let (kernel_us, kernel_source) = match device.uses_hopper_kernels() {
            true => (EARLY_KERNEL_US, EARLY_SOURCE_ELSEWHERE),
            false => (PLAIN_KERNEL_US, PLAIN_SOURCE),
        };
        Ok(Self {
            name: info.name.clone(),
            multiprocessors: info.multiprocessors,
            flops_per_s,
            bytes_per_s: ceilings.bytes_per_s,
            l2_bytes: info.l2_bytes,
            kernel_us,
            source: ceilings.source,
            kernel_source: kernel_source.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_tensor_cores_at_the_published_clock() {
        // FLOP a clock and multiprocessor, dense 16-bit with fp32 accumulation, and the boost clock of tensor operations, MHz.
        let published = [
            ("h200", 4096.0, 1830.0),
            ("h100", 4096.0, 1830.0),
            ("a100", 2048.0, 1410.0),
            ("l40s", 1024.0, 2520.0),
            ("rtx4090", 512.0, 2520.0),
        ];
        assert_eq!(names().collect::<Vec<_>>(), published.map(|(name, ..)| name));
        for (name, flops_per_clock, mhz) in published {
            let of = known(name).unwrap();
            let computed = flops_per_clock * f64::from(of.multiprocessors) * mhz * 1e6;
            assert!((of.flops_per_s / computed - 1.0).abs() < 0.02, "{name}: {} is not {computed}", of.flops_per_s);
            assert!(of.source.contains("NVIDIA") && of.kernel_source.contains("measured on an H200"), "{name}");
        }
        assert_eq!(known("h300"), None);
    }

    #[test]
    fn a_description_is_read_back() {
        for name in names() {
            let description = known(name).unwrap();
            assert_eq!(Description::parse(&serde_json::to_string(&description).unwrap()).unwrap(), description);
        }
        let least =
            r#"{"name": "a", "multiprocessors": 2, "flops_per_s": 1e12, "bytes_per_s": 5e10, "l2_bytes": 1048576}"#;
        let least = Description::parse(least).unwrap();
        assert_eq!((least.kernel_us, least.source.as_str()), (0.98, "not stated"));
        assert!(least.kernel_source.contains("H200"));
    }

    #[test]
    fn a_wrong_description_is_refused_with_its_field_named() {
        let good = serde_json::to_value(known("a100").unwrap()).unwrap();
        let with = |field: &str, value: Value| {
            let mut changed = good.clone();
            changed[field] = value;
            changed.to_string()
        };
        for (field, value) in [
            ("name", 3.into()),
            ("name", " ".into()),
            ("multiprocessors", 0.into()),
            ("multiprocessors", 1.5.into()),
            ("flops_per_s", "989 TFLOP/s".into()),
            ("bytes_per_s", (-1.0).into()),
            ("bytes_per_s", 1e30.into()),
            ("l2_bytes", Value::Null),
            ("kernel_us", 0.0.into()),
            ("source", Value::Bool(true)),
        ] {
            let message = Description::parse(&with(field, value.clone())).unwrap_err().to_string();
            assert!(message.contains(&format!("{field} = {value}")), "{message}");
        }
        for field in ["name", "multiprocessors", "flops_per_s", "bytes_per_s", "l2_bytes"] {
            let mut without = good.clone();
            without.as_object_mut().unwrap().remove(field);
            let message = Description::parse(&without.to_string()).unwrap_err().to_string();
            assert!(message.contains(&format!("{field} = missing")), "{message}");
        }
        let message = Description::parse(&with("tflops", 1.into())).unwrap_err().to_string();
        assert!(message.contains("\"tflops\"") && message.contains("flops_per_s"), "{message}");
        for text in ["", "[]", "3", "{"] {
            assert!(matches!(Description::parse(text), Err(Error::InvalidConfig { .. })), "{text:?}");
        }
    }
}
