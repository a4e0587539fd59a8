//! The rows of each kind of result.

use super::{Identity, Timed, Timing};
use crate::measure::kernels::Row;
use crate::measure::report::{Config, Machine, Run};
use crate::measure::{attention, gemm, norm, report};

impl Identity {
    /// Of a measurement of single kernels.
    pub(in crate::measure) fn of_kernels(schema: &str, device: &str, dtype: &str, shapes: Vec<String>) -> Self {
        Self { schema: schema.into(), device: device.into(), dtype: dtype.into(), model: String::new(), shapes }
    }

    /// Of a comparison of layers of these dimensions; of a checkpoint of that name, if the weights are one's.
    pub(in crate::measure) fn of_layers(
        device: String,
        dtype: &str,
        config: &Config,
        checkpoint: Option<&str>,
        shapes: Vec<String>,
    ) -> Self {
        let heads = config.num_key_value_heads.unwrap_or(config.num_attention_heads);
        let config = Config { num_key_value_heads: Some(heads), ..config.clone() };
        let weights = checkpoint.map_or_else(|| "random weights".to_owned(), |name| format!("weights of {name}"));
        let model =
            format!("{}, {weights}", serde_json::to_string(&config).expect("dimensions are numbers and strings"));
        Self { schema: report::SCHEMA.into(), device, dtype: dtype.into(), model, shapes }
    }
}

/// What a batch is known by: its shape, and its lengths, since those of the same size with other lengths are other work.
pub(in crate::measure) fn batch(batch: usize, seq_len: usize, packed: bool, lengths: Option<&[usize]>) -> String {
    let shape = report::shape_name(batch, seq_len, packed);
    lengths.map_or_else(|| shape.clone(), |lengths| format!("{shape}, lengths {lengths:?}"))
}

fn batch_of(case: &report::Case) -> String {
    batch(case.batch, case.seq_len, case.packed, case.lengths.as_deref())
}

impl Machine {
    /// What times depend on: the GPU, or processor and threads.
    pub(in crate::measure) fn identity(&self) -> String {
        self.device.clone().unwrap_or_else(|| format!("{}, {} threads", self.cpu, self.cpu_threads))
    }
}

impl Timed for report::Report {
    fn run(&self) -> &Run {
        &self.run
    }

    fn identity(&self) -> Identity {
        let checkpoint = self.checkpoint.as_ref().map(|checkpoint| checkpoint.name.as_str());
        let shapes = self.cases.iter().map(batch_of).collect();
        Identity::of_layers(self.run.machine.identity(), &self.dtype, &self.config, checkpoint, shapes)
    }

    fn timings(&self) -> Vec<Timing> {
        let of_case = |(at, case): (usize, &report::Case)| {
            let shape = report::shape_name(case.batch, case.seq_len, case.packed);
            let batch = batch_of(case);
            let timing = |variant: &report::Variant| {
                let name = format!("{shape}: {}", variant.name());
                let key = format!("{batch}: {}", variant.name());
                Timing { name, key, case: at, ours: true, samples_us: variant.samples_us.clone() }
            };
            case.variants.iter().map(timing).collect::<Vec<_>>()
        };
        self.cases.iter().enumerate().flat_map(of_case).collect()
    }
}

/// Rows of single kernels on one shape.
fn of_rows(case: usize, shape: &str, rows: &[Row]) -> Vec<Timing> {
    let timing = |row: &Row| {
        // What was chosen then need not be what is chosen now.
        let which = if row.planned { "planned" } else { row.variant.as_deref().unwrap_or_default() };
        let key = format!("{shape}: {} {} {which} {}", row.by, row.what, row.overlap);
        let ours = row.variant.is_some();
        let planned = if row.planned { "* " } else { "" };
        let name = format!("{shape}: {planned}{}", row.name());
        Timing { name, key, case, ours, samples_us: row.samples_us.clone() }
    };
    rows.iter().map(timing).collect()
}

impl Timed for gemm::Report {
    fn run(&self) -> &Run {
        &self.run
    }

    fn identity(&self) -> Identity {
        let shapes = self.cases.iter().map(gemm::Case::name).collect();
        Identity::of_kernels(gemm::SCHEMA, &self.run.machine.identity(), &self.dtype, shapes)
    }

    fn timings(&self) -> Vec<Timing> {
        let cases = self.cases.iter().enumerate();
        cases.flat_map(|(at, case)| of_rows(at, &case.name(), &case.rows)).collect()
    }
}

impl Timed for attention::Report {
    fn run(&self) -> &Run {
        &self.run
    }

    fn identity(&self) -> Identity {
        let shapes = self.cases.iter().map(|case| case.shape.to_string()).collect();
        Identity::of_kernels(attention::SCHEMA, &self.run.machine.identity(), &self.dtype, shapes)
    }

    fn timings(&self) -> Vec<Timing> {
        let cases = self.cases.iter().enumerate();
        cases.flat_map(|(at, case)| of_rows(at, &case.shape.to_string(), &case.rows)).collect()
    }
}

impl Timed for norm::Report {
    fn run(&self) -> &Run {
        &self.run
    }

    fn identity(&self) -> Identity {
        let shapes = self.cases.iter().map(|case| case.shape.to_string()).collect();
        Identity::of_kernels(norm::SCHEMA, &self.run.machine.identity(), &self.dtype, shapes)
    }

    fn timings(&self) -> Vec<Timing> {
        let of_case = |(at, case): (usize, &norm::Case)| {
            let timing = |name: String, samples_us: &[f64]| Timing {
                key: name.clone(),
                name,
                case: at,
                ours: true,
                samples_us: samples_us.to_vec(),
            };
            let hot = case.hot.iter().map(|hot| timing(format!("{}, hot", case.shape), &hot.samples_us));
            std::iter::once(timing(case.shape.to_string(), &case.samples_us)).chain(hot).collect::<Vec<_>>()
        };
        self.cases.iter().enumerate().flat_map(of_case).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Verdict, compare};
    use super::*;

    fn read<R: serde::de::DeserializeOwned>(name: &str) -> R {
        let path = format!("{}/benches/results/{name}.json", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Every row of a result has one partner in the same result, which is itself.
    #[track_caller]
    fn is_itself(report: &impl Timed) {
        let mut keys: Vec<_> = report.timings().into_iter().map(|timing| timing.key).collect();
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count, "two rows have the same key");
        let comparison = compare(report, report, 0.0).unwrap();
        assert!(comparison.rows.iter().all(|row| row.ratio.median == 1.0 && row.median_us[0] == row.median_us[1]));
        assert!(comparison.rows.iter().all(|row| matches!(row.verdict, Verdict::Same | Verdict::Peer)));
        assert_eq!((comparison.rows.len(), comparison.only_now.len(), comparison.only_before.len()), (count, 0, 0));
    }

    #[test]
    fn results_of_every_kind_are_compared_row_by_row() {
        is_itself(&read::<report::Report>("roberta-large-h100"));
        is_itself(&read::<report::Report>("minilm-h100"));
        is_itself(&read::<gemm::Report>("gemm-h100"));
        is_itself(&read::<attention::Report>("attention-h100"));
        is_itself(&read::<norm::Report>("norm-h100"));
    }

    #[test]
    fn another_card_model_or_set_of_weights_is_refused() {
        let (h100, h200) = (read::<report::Report>("pythia-1.4b-h100"), read::<report::Report>("pythia-1.4b-h200"));
        let error = compare(&h100, &h200, 0.02).unwrap_err().to_string();
        assert!(error.contains("device is NVIDIA H200, expected NVIDIA H100"), "{error}");
        let error = compare(&h100, &read::<report::Report>("gpt-j-6b-h100"), 0.02).unwrap_err().to_string();
        assert!(error.contains("model is") && error.contains("16384"), "{error}");
        let mut other = h100.clone();
        other.checkpoint = read::<report::Report>("minilm-h100").checkpoint;
        let error = compare(&other, &h100, 0.02).unwrap_err().to_string();
        assert!(error.contains("random weights") && error.contains("weights of "), "{error}");
    }

    #[test]
    fn a_planned_kernel_is_compared_with_what_was_planned() {
        let before = read::<gemm::Report>("gemm-h100");
        let mut now = before.clone();
        let planned = before.cases[0].rows.iter().filter(|row| row.planned).count();
        for row in now.cases[0].rows.iter_mut().filter(|row| row.planned) {
            row.variant = Some("sm80:16x64".into());
            row.samples_us.iter_mut().for_each(|sample| *sample *= 1.05);
        }
        let comparison = compare(&now, &before, 0.02).unwrap();
        let slower: Vec<_> = comparison.regressions().map(|row| row.name.as_str()).collect();
        assert!(planned >= 3 && slower.len() == planned, "{slower:?}");
        assert!(slower[0].starts_with("64 × 3072 × 1024: * sm80:16x64 product"), "{slower:?}");
    }
}
