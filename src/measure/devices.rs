//! What devices can do at most, by their data sheets: for predictions, whether one is present or not.

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

/// The card on which these were measured.
const MEASURED_ON: &str = "NVIDIA H200";

/// The time from kernel to dependent kernel on the card of that name, launched early or not, and where it comes from.
fn kernel(name: &str, early: bool) -> (f64, String) {
    let (us, launch) = match early {
        true => (EARLY_KERNEL_US, " with programmatic dependent launch"),
        false => (PLAIN_KERNEL_US, ""),
    };
    let here = if name == MEASURED_ON { "" } else { " and assumed to hold here" };
    (us, format!("{us:.2} µs: a chain of empty kernels in a CUDA graph{launch}, measured on an H200{here}"))
}

/// A line of the table of devices.
struct Row {
    /// For `--device`.
    key: &'static str,
    name: &'static str,
    multiprocessors: u32,
    tflops: f64,
    gb_per_s: f64,
    l2_mib: u64,
    /// Whether its kernels are launched before the one before has ended.
    early: bool,
    source: &'static str,
}

impl Row {
    fn description(&self) -> Description {
        let (kernel_us, kernel_source) = kernel(self.name, self.early);
        Description {
            name: self.name.into(),
            multiprocessors: self.multiprocessors,
            flops_per_s: self.tflops * 1e12,
            bytes_per_s: self.gb_per_s * 1e9,
            l2_bytes: self.l2_mib << 20,
            kernel_us,
            source: self.source.into(),
            kernel_source,
        }
    }
}

const ROWS: [Row; 5] = [
    Row {
        key: "h200",
        name: MEASURED_ON,
        multiprocessors: 132,
        tflops: 989.4,
        gb_per_s: 4800.0,
        l2_mib: 60,
        early: true,
        source: "NVIDIA H200 Tensor Core GPU datasheet, SXM (BFLOAT16 1,979 TFLOPS with sparsity; 4.8 TB/s); L2 as the driver reports it",
    },
    Row {
        key: "h100",
        name: "NVIDIA H100 80GB HBM3",
        multiprocessors: 132,
        tflops: 989.4,
        gb_per_s: 3350.0,
        l2_mib: 50,
        early: true,
        source: "NVIDIA H100 Tensor Core GPU datasheet, SXM (BFLOAT16 1,979 TFLOPS with sparsity; 3.35 TB/s); architecture white paper",
    },
    Row {
        key: "a100",
        name: "NVIDIA A100-SXM4-80GB",
        multiprocessors: 108,
        tflops: 312.0,
        gb_per_s: 2039.0,
        l2_mib: 40,
        early: false,
        source: "NVIDIA A100 Tensor Core GPU datasheet, 80GB SXM (BFLOAT16 312 TFLOPS; 2,039 GB/s); architecture white paper",
    },
    Row {
        key: "l40s",
        name: "NVIDIA L40S",
        multiprocessors: 142,
        tflops: 362.05,
        gb_per_s: 864.0,
        l2_mib: 96,
        early: false,
        source: "NVIDIA L40S datasheet (BFLOAT16 362.05 TFLOPS, 733 with sparsity; 864 GB/s); Ada architecture white paper",
    },
    Row {
        key: "rtx4090",
        name: "NVIDIA GeForce RTX 4090",
        multiprocessors: 128,
        tflops: 165.2,
        gb_per_s: 1008.0,
        l2_mib: 72,
        early: false,
        source: "NVIDIA Ada GPU architecture white paper, appendix A (BF16 with FP32 accumulate 165.2 TFLOPS; 1,008 GB/s)",
    },
];

/// The names that [`known`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|row| row.key)
}

/// The description of a device by its short name, such as `h200`.
pub fn known(name: &str) -> Option<Description> {
    ROWS.iter().find(|row| row.key == name).map(Row::description)
}

/// The description of the card that the driver gives that name, and so many multiprocessors: a part of one is another device.
#[cfg(any(feature = "cuda", test))]
fn by_name(name: &str, multiprocessors: u32) -> Option<Description> {
    let is_it = |row: &&Row| row.name == name && row.multiprocessors == multiprocessors;
    ROWS.iter().find(is_it).map(Row::description)
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
        let name = text("name")?.ok_or_else(missing("name"))?;
        let kernel_us = number("kernel_us", 1e6)?;
        let kernel_source = text("kernel_source")?
            .unwrap_or_else(|| if kernel_us.is_some() { "not stated".into() } else { kernel(&name, false).1 });
        Ok(Self {
            name,
            multiprocessors: whole("multiprocessors", 1e6)?.ok_or_else(missing("multiprocessors"))? as u32,
            flops_per_s: number("flops_per_s", 1e21)?.ok_or_else(missing("flops_per_s"))?,
            bytes_per_s: number("bytes_per_s", 1e18)?.ok_or_else(missing("bytes_per_s"))?,
            l2_bytes: whole("l2_bytes", 1e15)?.ok_or_else(missing("l2_bytes"))?,
            kernel_us: kernel_us.unwrap_or(PLAIN_KERNEL_US),
            source: text("source")?.unwrap_or_else(|| "not stated".into()),
            kernel_source,
        })
    }

    /// A device that is present: by its data sheet if its name is known, as [`known`] has it; else its rate by arithmetic, its
    /// bandwidth by a copy.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the rate of its tensor cores is not known; what the copy gives.
    #[cfg(feature = "cuda")]
    pub fn of_device(device: &crate::gpu::Device) -> Result<Self> {
        let info = device.info();
        // Not by the card alone: its portable kernels are not launched early.
        let (kernel_us, kernel_source) = kernel(&info.name, device.uses_hopper_kernels());
        if let Some(description) = by_name(&info.name, info.multiprocessors) {
            return Ok(Self { kernel_us, kernel_source, ..description });
        }
        let ceilings = super::roofline::of_device(device)?;
        let flops_per_s = ceilings.flops_per_s.ok_or_else(|| Error::Unsupported {
            what: format!("a prediction for compute capability {:?}", info.compute_capability),
            remedy: "its tensor cores' rate is not known: name a description of it, --device FILE.json".into(),
        })?;
        Ok(Self {
            name: info.name.clone(),
            multiprocessors: info.multiprocessors,
            flops_per_s,
            bytes_per_s: ceilings.bytes_per_s,
            l2_bytes: info.l2_bytes,
            kernel_us,
            source: ceilings.source,
            kernel_source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::roofline::tensor_fma_per_clock;

    #[test]
    fn rates_are_those_of_the_tensor_cores_at_the_published_clock() {
        // Compute capability, and the boost clock of tensor operations, MHz.
        let published = [
            ("h200", (9, 0), 1830.0),
            ("h100", (9, 0), 1830.0),
            ("a100", (8, 0), 1410.0),
            ("l40s", (8, 9), 2520.0),
            ("rtx4090", (8, 9), 2520.0),
        ];
        assert_eq!(names().collect::<Vec<_>>(), published.map(|(name, ..)| name));
        for (name, compute_capability, mhz) in published {
            let of = known(name).unwrap();
            let fma = tensor_fma_per_clock(&of.name, compute_capability).unwrap();
            let computed = 2.0 * fma * f64::from(of.multiprocessors) * mhz * 1e6;
            assert!((of.flops_per_s / computed - 1.0).abs() < 0.02, "{name}: {} is not {computed}", of.flops_per_s);
            assert!(of.source.contains("NVIDIA") && of.kernel_source.contains("measured on an H200"), "{name}");
            assert_eq!(of.kernel_source.contains("assumed"), name != "h200", "{name}");
            // A card that is present has the same prediction as its name.
            assert_eq!(by_name(&of.name, of.multiprocessors).as_ref(), Some(&of));
            assert_eq!(by_name(&of.name, of.multiprocessors - 1), None);
        }
        assert_eq!((known("h300"), by_name("NVIDIA H300", 132)), (None, None));
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
