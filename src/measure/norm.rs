//! The join of a layer's branches, residual sum and layer norms, beside a copy of as many bytes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::report::{self, DeviceState, Run, Spread};
use super::warnings::{self, Doubts};

/// Version of the JSON's layout.
pub const SCHEMA: &str = "paf-cuda/norm/1";

/// A join: rows, hidden_size, addends, whether the sum is stored, norms of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Shape {
    /// Tokens: rows of the addends.
    pub rows: usize,
    /// Columns.
    pub hidden_size: usize,
    /// What is summed up: the residual and what the branches made.
    pub addends: usize,
    /// Whether the sum is stored.
    pub sum: bool,
    /// Norms of the sum.
    pub norms: usize,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let &Self { rows, hidden_size, addends, sum, norms } = self;
        let stored = if sum { ", sum stored" } else { "" };
        write!(f, "{rows} × {hidden_size}, addends {addends}{stored}, norms {norms}")
    }
}

impl Shape {
    /// Bytes read and written, each once, γ and β aside.
    pub fn bytes(&self) -> usize {
        (self.addends + usize::from(self.sum) + self.norms) * self.rows * self.hidden_size * crate::Dtype::BYTES
    }
}

/// The joins of RoBERTa-large after one wide product and after two branches, and the widest that a pre-norm design has, for few
/// tokens and many.
pub fn layer_shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for rows in [128, 512, 2048, 16384, 65536] {
        for addends in [1, 3] {
            shapes.push(Shape { rows, hidden_size: 1024, addends, sum: false, norms: 1 });
        }
    }
    for (hidden_size, rows) in [(2048, [128, 16384]), (4096, [128, 16384])] {
        shapes.extend(rows.map(|rows| Shape { rows, hidden_size, addends: 3, sum: true, norms: 2 }));
    }
    shapes
}

/// One run.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Report {
    /// Its schema is [`SCHEMA`].
    #[serde(flatten)]
    pub run: Run,
    /// Element type.
    pub dtype: String,
    /// How it was measured, in words.
    pub method: String,
    /// Half width of the medians' intervals at which sampling stops, over the median; absent in older files, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_target: Option<f64>,
    /// Rate of a large device-to-device copy, read and write together.
    pub copy_bytes_per_s: f64,
    /// One shape each.
    pub cases: Vec<Case>,
}

/// What was measured on one shape.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Case {
    /// What is joined.
    #[serde(flatten)]
    pub shape: Shape,
    /// Bytes read and written, each once.
    pub bytes: usize,
    /// Distinct sets of operands in rotation.
    pub sets: usize,
    /// Every sample, µs a launch, in the order of the rounds.
    pub samples_us: Vec<f64>,
    /// Their median, µs.
    pub median_us: Spread,
    /// Bytes over the median, over the copy's rate.
    pub copy_share: f64,
    /// The same join on the same operands again and again, which the L2 cache holds where they fit; absent in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hot: Option<Hot>,
    /// After the rounds that warm up; absent in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_before: Option<DeviceState>,
    /// After the samples.
    pub state_after: Option<DeviceState>,
}

/// What operands take that the kernel before has just left in the cache.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Hot {
    /// Every sample, µs a launch, in the order of the rounds.
    pub samples_us: Vec<f64>,
    /// Their median, µs.
    pub median_us: Spread,
}

impl Report {
    /// A line for each shape, in Markdown.
    pub fn markdown(&self) -> String {
        let with_hot = self.cases.iter().any(|case| case.hot.is_some());
        let [name, line] = if with_hot { [" hot, µs |", " --- |"] } else { [""; 2] };
        let mut text = format!(
            "| rows × hidden_size | addends | sum | norms | µs | GB/s | of a copy's rate |{name}\n\
             | --- | --- | --- | --- | --- | --- | --- |{line}\n",
        );
        for Case { shape, bytes, median_us, copy_share, hot, .. } in &self.cases {
            let time = |of: &Spread| format!("{:.2} ± {:.2}", of.median, of.half_width());
            let hot = hot.as_ref().map_or_else(|| "–".to_owned(), |hot| time(&hot.median_us));
            let Shape { rows, hidden_size, addends, sum, norms } = shape;
            text += &format!(
                "| {rows} × {hidden_size} | {addends} | {} | {norms} | {} | {:.0} | {:.0} % |{}\n",
                if *sum { "stored" } else { "–" },
                time(median_us),
                *bytes as f64 / median_us.median / 1e3,
                copy_share * 100.0,
                if with_hot { format!(" {hot} |") } else { String::new() }
            );
        }
        text
    }

    /// What casts doubt on the times.
    pub(in crate::measure) fn doubts(&self) -> Doubts<'_> {
        let mut last = None;
        let cases = self.cases.iter().map(|case| {
            // Shapes that were measured together have their states in common: what these tell is told once.
            let own = [case.state_before.as_ref(), case.state_after.as_ref()];
            let states = if last.replace(own) == Some(own) { [None; 2] } else { own };
            let hot = case.hot.iter().map(|hot| ("hot".to_owned(), hot.median_us));
            let rows = std::iter::once(("cold".to_owned(), case.median_us)).chain(hot).collect();
            warnings::Case { name: case.shape.to_string(), said: &[], states, rows }
        });
        Doubts::new(&self.run, self.noise_target, cases)
    }

    /// The same, a line each, case by case.
    pub fn warnings(&self) -> Vec<String> {
        self.doubts().lines()
    }

    /// Pretty JSON, with a newline at the end.
    pub fn json(&self) -> String {
        report::json(self)
    }
}

#[cfg(feature = "cuda")]
mod operands;

#[cfg(feature = "cuda")]
pub use {
    on_device::{Experiment, Step},
    operands::Operands,
};

#[cfg(feature = "cuda")]
mod on_device {
    use std::ops::Range;

    use super::{Case, Hot, Operands, Report, SCHEMA, Shape};
    use crate::dtype::Dtype;
    use crate::error::{Error, Result};
    use crate::gpu::{Device, Stream};
    use crate::measure::baseline::Identity;
    use crate::measure::kernels::Timer;
    use crate::measure::machine::{self, Monitor};
    use crate::measure::report::Run;
    use crate::measure::statistics::Median;
    use crate::measure::timing::{Effort, Sampled, observe};

    /// What to measure.
    #[derive(Debug, Clone)]
    pub struct Experiment {
        /// Shapes.
        pub shapes: Vec<Shape>,
        /// Element type.
        pub dtype: Dtype,
        /// How long.
        pub effort: Effort,
    }

    /// What is going on, for a progress display.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Step {
        /// The shape of that index is verified.
        Verify(usize, Shape),
        /// Those that have been verified since are measured.
        Measure,
    }

    impl Experiment {
        /// What a result on `device` will be one of.
        pub fn identity(&self, device: &Device) -> Identity {
            let shapes = self.shapes.iter().map(ToString::to_string).collect();
            Identity::of_kernels(SCHEMA, &device.info().name, self.dtype.name(), shapes)
        }

        /// Verifies and measures every shape; `on_step` hears what is next.
        ///
        /// # Errors
        /// [`Error::Verification`] before timing, if a result is wrong; whatever the device gives.
        pub fn run(&self, device: &Device, mut on_step: impl FnMut(Step)) -> Result<Report> {
            let monitor = Monitor::new(device);
            let run = Run::begin(SCHEMA, machine::with_device(device, &monitor));
            let copy_bytes_per_s = device.copy_bandwidth()?;
            let (free_bytes, _) = device.memory_info()?;
            let bytes: Vec<_> = self.shapes.iter().map(|&shape| Operands::bytes(device, shape)).collect();
            let mut cases = Vec::new();
            for together in groups(&bytes, free_bytes / 2) {
                let mut operands = Vec::new();
                let stream = Stream::new(device)?;
                for i in together {
                    on_step(Step::Verify(i, self.shapes[i]));
                    let mut of = Operands::new(device, self.dtype, self.shapes[i])?;
                    of.verify(&stream)?;
                    operands.push(of);
                }
                on_step(Step::Measure);
                cases.extend(self.cases(&stream, &monitor, copy_bytes_per_s, operands)?);
            }
            Ok(Report {
                run,
                dtype: self.dtype.to_string(),
                method: format!(
                    "Before timing, three rows of each output against f64. A sample is the device time of one graph that joins \
                     each of several distinct sets of operands, together at least three times the L2 cache (hot: as often the same one), divided by their \
                     number, after a replay that is not timed. A round has a sample of each shape, cold and hot; {}, the seconds times the \
                     number of shapes. Bytes: addends, sum and norms once each.",
                    self.effort.rounds()
                ),
                noise_target: self.effort.noise,
                copy_bytes_per_s,
                cases,
            })
        }

        /// Measures some shapes, in rounds of all of them: a row's samples lie far apart in time, so that what disturbs the device for some
        /// milliseconds (a row of short launches takes a few per cent longer then) is in few of them.
        fn cases(
            &self,
            stream: &Stream,
            monitor: &Monitor,
            copy_bytes_per_s: f64,
            mut operands: Vec<Operands>,
        ) -> Result<Vec<Case>> {
            let of: Vec<_> = operands.iter().map(|operands| (operands.shape(), operands.sets())).collect();
            let graphs = operands.iter_mut().map(|operands| operands.record(stream)).collect::<Result<Vec<_>>>()?;
            let timer = Timer::new(stream)?;
            let mut candidates = Vec::new();
            for (graphs, &(_, sets)) in graphs.iter().zip(&of) {
                for graph in graphs {
                    candidates.push(timer.candidate(Some("norm"), graph, sets)?);
                }
            }
            let effort = Effort { budget: self.effort.budget * of.len() as u32, ..self.effort };
            let Sampled { samples_us, state_before, state_after } =
                observe(&mut candidates, effort, || monitor.state(), |_| ())?;
            let median = |samples: &[f64]| {
                Median::of(samples).ok_or_else(|| Error::Verification("a time is not a number".into()))
            };
            let mut samples = samples_us.into_iter();
            let mut next = || samples.next().expect("each shape has two candidates");
            of.into_iter()
                .map(|(shape, sets)| {
                    let (samples_us, hot_us) = (next(), next());
                    let (cold, hot) = (median(&samples_us)?, median(&hot_us)?);
                    Ok(Case {
                        shape,
                        bytes: shape.bytes(),
                        sets,
                        samples_us,
                        median_us: cold.into(),
                        copy_share: shape.bytes() as f64 / (cold.value * 1e-6) / copy_bytes_per_s,
                        hot: Some(Hot { median_us: hot.into(), samples_us: hot_us }),
                        state_before: state_before.clone(),
                        state_after: state_after.clone(),
                    })
                })
                .collect()
        }
    }

    /// Neighbours whose `bytes` are together no more than `room`, or one alone that has more.
    fn groups(bytes: &[usize], room: usize) -> Vec<Range<usize>> {
        let mut groups: Vec<Range<usize>> = Vec::new();
        let mut left = 0;
        for (i, &bytes) in bytes.iter().enumerate() {
            match groups.last_mut().filter(|_| bytes <= left) {
                Some(group) => group.end = i + 1,
                None => {
                    groups.push(i..i + 1);
                    left = room;
                }
            }
            left = left.saturating_sub(bytes);
        }
        groups
    }

    #[cfg(test)]
    mod tests {
        use super::groups;

        #[test]
        fn groups_have_room() {
            assert!(groups(&[], 10).is_empty());
            assert_eq!(groups(&[4, 6, 1, 12, 9, 1, 1], 10), [0..2, 2..3, 3..4, 4..6, 6..7]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hot_times_have_a_column_where_there_are_any() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/norm-h100.json");
        let mut report: Report = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        report.cases.iter_mut().for_each(|case| case.hot = None);
        assert!(!report.markdown().contains("hot"));
        let median_us = Spread { median: 2.0, low: 1.9, high: 2.05, confidence: 0.96 };
        report.cases[0].hot = Some(Hot { samples_us: vec![2.0], median_us });
        report.noise_target = Some(0.01);
        let markdown = report.markdown();
        let lines: Vec<_> = markdown.lines().collect();
        assert!(
            lines[0].ends_with("| of a copy's rate | hot, µs |") && lines[1].ends_with("| --- | --- |"),
            "{markdown}"
        );
        assert!(lines[2].ends_with(" % | 2.00 ± 0.10 |") && lines[3].ends_with(" % | – |"), "{markdown}");
        let noisy = "128 × 1024, addends 1, norms 1: noise above ± 1 %: hot ± 5.0 %".to_owned();
        assert!(report.warnings().contains(&noisy), "{:?}", report.warnings());
    }

    #[test]
    fn what_shapes_have_in_common_is_told_once() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/norm-h100.json");
        let mut report: Report = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let state = |clock| Some(DeviceState { sm_clock_mhz: Some(clock), ..DeviceState::default() });
        let (first, others) = report.cases.split_at_mut(2);
        for (cases, clock) in [(first, 1000), (others, 1100)] {
            cases.iter_mut().for_each(|case| (case.state_before, case.state_after) = (state(1980), state(clock)));
        }
        let mut warnings = report.warnings();
        warnings.retain(|line| line.contains("SM clock"));
        assert!(warnings.len() == 2 && warnings[0].starts_with("128 × 1024, addends 1"), "{warnings:?}");
        assert!(warnings[1].starts_with("512 × 1024, addends 1"), "{warnings:?}");
    }

    #[test]
    fn bytes_count_each_operand_once() {
        let shape = Shape { rows: 3, hidden_size: 8, addends: 3, sum: true, norms: 2 };
        assert_eq!(shape.bytes(), 6 * 3 * 8 * 2);
        assert_eq!(Shape { sum: false, ..shape }.bytes(), 5 * 3 * 8 * 2);
        let mut shapes = layer_shapes();
        let count = shapes.len();
        shapes.dedup();
        assert_eq!(shapes.len(), count);
    }
}
