//! The join of a layer's branches, residual sum and layer norms, beside a copy of as many bytes.

use serde::{Deserialize, Serialize};

use super::report::{self, DeviceState, Run, Spread};

/// Version of the JSON's layout.
pub const SCHEMA: &str = "paf-cuda/norm/1";

/// A join: rows, hidden_size, addends, whether the sum is stored, norms of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Shape {
    pub rows: usize,
    pub hidden_size: usize,
    pub addends: usize,
    pub sum: bool,
    pub norms: usize,
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its schema is [`SCHEMA`].
    #[serde(flatten)]
    pub run: Run,
    /// Element type.
    pub dtype: String,
    /// How it was measured, in words.
    pub method: String,
    /// Rate of a large device-to-device copy, read and write together.
    pub copy_bytes_per_s: f64,
    /// One shape each.
    pub cases: Vec<Case>,
}

/// What was measured on one shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it, with units")]
pub struct Case {
    #[serde(flatten)]
    pub shape: Shape,
    pub bytes: usize,
    /// Distinct sets of operands in rotation.
    pub sets: usize,
    pub samples_us: Vec<f64>,
    pub median_us: Spread,
    /// Bytes over the median, over the copy's rate.
    pub copy_share: f64,
    pub state_after: Option<DeviceState>,
}

impl Report {
    /// A line for each shape, in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "| rows × hidden_size | addends | sum | norms | µs | GB/s | of a copy's rate |\n\
             | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for Case { shape, bytes, median_us, copy_share, .. } in &self.cases {
            let Shape { rows, hidden_size, addends, sum, norms } = shape;
            text += &format!(
                "| {rows} × {hidden_size} | {addends} | {} | {norms} | {:.2} ± {:.2} | {:.0} | {:.0} % |\n",
                if *sum { "stored" } else { "–" },
                median_us.median,
                median_us.half_width(),
                *bytes as f64 / median_us.median / 1e3,
                copy_share * 100.0
            );
        }
        text
    }

    /// Pretty JSON, with a newline at the end.
    pub fn json(&self) -> String {
        report::json(self)
    }
}

#[cfg(feature = "cuda")]
pub use on_device::Experiment;

#[cfg(feature = "cuda")]
mod on_device {
    use super::{Case, Report, SCHEMA, Shape};
    use crate::config::BatchShape;
    use crate::cpu::oracle::{self, Rounding};
    use crate::dtype::Dtype;
    use crate::error::{Error, Result};
    use crate::gpu::kernel::{self, JoinOperands, Norm};
    use crate::gpu::{Batch, Device, Stream, Tensor};
    use crate::measure::kernels::Timer;
    use crate::measure::machine::{self, Monitor};
    use crate::measure::report::Run;
    use crate::measure::statistics::Median;
    use crate::measure::timing::{Candidate, Effort, interleave};
    use crate::weights::{NormWeights, random_activations};

    const EPS: f32 = 1e-5;

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

    /// What one launch reads and writes.
    struct Set {
        addends: Vec<Tensor>,
        sum: Option<Tensor>,
        outs: Vec<Tensor>,
    }

    /// A join of each set, whose norms have these γ and β.
    fn joins<'a>(sets: &'a mut [Set], batch: &'a Batch, vectors: &'a [(Tensor, Tensor)]) -> Vec<JoinOperands<'a>> {
        let norm =
            |(out, vectors): (&'a mut Tensor, &'a (Tensor, Tensor))| Norm { out, gamma: &vectors.0, beta: &vectors.1 };
        sets.iter_mut()
            .map(|Set { addends, sum, outs }| JoinOperands {
                batch,
                addends: addends.iter().collect(),
                sum: sum.as_mut(),
                norms: outs.iter_mut().zip(vectors).map(norm).collect(),
                eps: EPS,
            })
            .collect()
    }

    impl Experiment {
        /// Verifies and measures every shape; `on_case` hears which is next.
        ///
        /// # Errors
        /// [`Error::Verification`] before timing, if a result is wrong; whatever the device gives.
        pub fn run(&self, device: &Device, mut on_case: impl FnMut(usize, Shape)) -> Result<Report> {
            let monitor = Monitor::new(device);
            let run = Run::begin(SCHEMA, machine::with_device(device, &monitor));
            let copy_bytes_per_s = device.copy_bandwidth()?;
            let mut cases = Vec::new();
            for (i, &shape) in self.shapes.iter().enumerate() {
                on_case(i, shape);
                cases.push(self.case(device, &monitor, copy_bytes_per_s, shape)?);
            }
            Ok(Report {
                run,
                dtype: self.dtype.to_string(),
                method: format!(
                    "Before timing, three rows of each output against f64. A sample is the device time of one graph that joins \
                     each of several distinct sets of operands, together at least three times the L2 cache, divided by their \
                     number; {} to {} rounds or {:.2} s. Bytes: addends, sum and norms once each.",
                    self.effort.min_rounds,
                    self.effort.max_rounds,
                    self.effort.budget.as_secs_f64()
                ),
                copy_bytes_per_s,
                cases,
            })
        }

        fn case(&self, device: &Device, monitor: &Monitor, copy_bytes_per_s: f64, shape: Shape) -> Result<Case> {
            let Shape { rows, hidden_size: hidden, addends, sum, norms } = shape;
            let sets = (3 * device.info().l2_bytes as usize).div_ceil(shape.bytes()).clamp(3, 160);
            let (stream, batch) = (Stream::new(device)?, Batch::new(device, &BatchShape::new(1, rows)?)?);
            let upload = |rows, values: &[f32]| Tensor::from_host(device, self.dtype, rows, hidden, values);
            let random = |rows, seed| random_activations(rows, hidden, seed);
            // Prime, so that rows do not repeat at once.
            let source = Tensor::from_host(device, self.dtype, 1, 1_048_573, &random_activations(1, 1_048_573, 1))?;
            let vectors = [2, 4].map(|seed| NormWeights { gamma: random(1, seed), beta: random(1, seed + 1) });
            let device_vectors = vectors.iter().map(|of| Ok((upload(1, &of.gamma)?, upload(1, &of.beta)?)));
            let device_vectors = device_vectors.collect::<Result<Vec<_>>>()?;
            let poisoned = || Tensor::poisoned(device, self.dtype, rows, hidden);
            let mut operands = (0..sets)
                .map(|_| {
                    Ok(Set {
                        addends: (0..addends).map(|_| source.repeated(rows, hidden)).collect::<Result<_>>()?,
                        sum: sum.then(poisoned).transpose()?,
                        outs: (0..norms).map(|_| poisoned()).collect::<Result<_>>()?,
                    })
                })
                .collect::<Result<Vec<_>>>()?;
            kernel::record_joins(&stream, &mut joins(&mut operands, &batch, &device_vectors))?.launch(&stream)?;
            for set in [&operands[0], &operands[sets - 1]] {
                self.verify(shape, set, &vectors)?;
            }
            let graph = kernel::record_joins(&stream, &mut joins(&mut operands, &batch, &device_vectors))?;
            let timer = Timer::new(&stream)?;
            let mut candidates: [Candidate<'_>; 1] = [Box::new(|| timer.replay(&graph, sets))];
            let samples_us = interleave(&mut candidates, self.effort, |_| ())?.remove(0);
            let median = Median::of(&samples_us).ok_or_else(|| Error::Verification("a time is not a number".into()))?;
            Ok(Case {
                shape,
                bytes: shape.bytes(),
                sets,
                samples_us,
                median_us: median.into(),
                copy_share: shape.bytes() as f64 / (median.value * 1e-6) / copy_bytes_per_s,
                state_after: monitor.state(),
            })
        }

        /// The first row, the last, and one amid them.
        fn verify(&self, shape: Shape, set: &Set, vectors: &[NormWeights; 2]) -> Result<()> {
            let epsilon = self.dtype.epsilon();
            let rounded = |values: &[f32]| values.iter().map(|&x| self.dtype.round(x)).collect::<Vec<_>>();
            for row in [0, shape.rows / 2, shape.rows - 1] {
                let addends = set.addends.iter().map(|addend| addend.row(row)).collect::<Result<Vec<_>>>()?;
                let addends: Vec<Vec<f64>> =
                    addends.iter().map(|addend| addend.iter().map(|&x| f64::from(x)).collect()).collect();
                let addends: Vec<&[f64]> = addends.iter().map(Vec::as_slice).collect();
                let norms = vectors
                    .iter()
                    .map(|of| NormWeights { gamma: rounded(&of.gamma), beta: rounded(&of.beta) })
                    .collect::<Vec<_>>();
                let outputs = set.outs.iter().zip(norms.iter().map(Some)).chain(set.sum.iter().zip([None]));
                for (out, norm) in outputs {
                    let exact = oracle::norm_join(&addends, shape.hidden_size, norm, EPS, Rounding::Exact)?;
                    for (column, (&got, exact)) in out.row(row)?.iter().zip(exact).enumerate() {
                        let (got, bound) = (f64::from(got), epsilon * exact.abs() + 1e-4);
                        if got.is_nan() || (got - exact).abs() > bound {
                            return Err(Error::Verification(format!(
                                "join {shape:?}: element ({row}, {column}) is {got}, not {exact} ± {bound:.2e}"
                            )));
                        }
                    }
                }
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
