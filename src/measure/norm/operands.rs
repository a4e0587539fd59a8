//! What a join reads and writes, in as many sets as it takes that they come from memory; verified before anything is timed.

use super::Shape;
use crate::config::BatchShape;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::gpu::kernel::{self, JoinOperands, Norm};
use crate::gpu::{Batch, Device, Graph, Stream, Tensor};
use crate::measure::spot;
use crate::weights::{NormWeights, random_activations};

const EPS: f32 = 1e-5;

/// Distinct sets of operands, together at least three times the L2 cache, and one more for hot launches.
pub struct Operands {
    shape: Shape,
    batch: Batch,
    rotation: Vec<Set>,
    hot: Set,
    vectors: [NormWeights; 2],
    device_vectors: Vec<(Tensor, Tensor)>,
}

/// What one launch reads and writes.
struct Set {
    addends: Vec<Tensor>,
    sum: Option<Tensor>,
    outs: Vec<Tensor>,
}

impl Set {
    fn join<'a>(&'a mut self, batch: &'a Batch, vectors: &'a [(Tensor, Tensor)]) -> JoinOperands<'a> {
        let Self { addends, sum, outs } = self;
        JoinOperands {
            batch,
            addends: addends.iter().collect(),
            sum: sum.as_mut(),
            norms: outs.iter_mut().zip(vectors).map(|(out, (gamma, beta))| Norm { out, gamma, beta }).collect(),
            eps: EPS,
        }
    }
}

impl std::fmt::Debug for Operands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operands").field("shape", &self.shape).field("sets", &self.sets()).finish_non_exhaustive()
    }
}

/// How many sets there are in rotation.
fn sets(device: &Device, shape: Shape) -> usize {
    (3 * device.info().l2_bytes as usize).div_ceil(shape.bytes()).max(3)
}

impl Operands {
    /// Device memory that those of a shape take, γ and β aside.
    pub fn bytes(device: &Device, shape: Shape) -> usize {
        (sets(device, shape) + 1) * shape.bytes()
    }

    /// Random ones; outputs are NaN.
    ///
    /// # Errors
    /// What the device gives.
    pub fn new(device: &Device, dtype: Dtype, shape: Shape) -> Result<Self> {
        // Prime, so that rows do not repeat at once.
        const VALUES: usize = 1_048_573;
        let Shape { rows, hidden_size: hidden, addends, sum, norms } = shape;
        let source = Tensor::from_host(device, dtype, 1, VALUES, &random_activations(1, VALUES, 1))?;
        let random = |seed| random_activations(1, hidden, seed);
        let vectors = [2, 4].map(|seed| NormWeights { gamma: random(seed), beta: random(seed + 1) });
        let upload = |values: &[f32]| Tensor::from_host(device, dtype, 1, hidden, values);
        let device_vectors = vectors.iter().map(|of| Ok((upload(&of.gamma)?, upload(&of.beta)?)));
        let device_vectors = device_vectors.collect::<Result<Vec<_>>>()?;
        let poisoned = || Tensor::poisoned(device, dtype, rows, hidden);
        let set = || {
            Ok(Set {
                addends: (0..addends).map(|_| source.repeated(rows, hidden)).collect::<Result<_>>()?,
                sum: sum.then(poisoned).transpose()?,
                outs: (0..norms).map(|_| poisoned()).collect::<Result<_>>()?,
            })
        };
        let sets = sets(device, shape);
        let batch = Batch::new(device, &BatchShape::new(1, rows)?)?;
        let rotation = (0..sets).map(|_| set()).collect::<Result<_>>()?;
        Ok(Self { shape, batch, rotation, hot: set()?, vectors, device_vectors })
    }

    /// What is joined.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Sets in rotation, and launches of each graph.
    pub fn sets(&self) -> usize {
        self.rotation.len()
    }

    /// Joins every set, and looks at rows of the first, of the last and of the hot one.
    ///
    /// # Errors
    /// [`Error::Verification`](crate::Error::Verification) if an element is wrong; what the device gives.
    pub fn verify(&mut self, stream: &Stream) -> Result<()> {
        self.record(stream)?.iter().try_for_each(|graph| graph.launch(stream))?;
        stream.synchronize()?;
        for set in self.rotation.first().into_iter().chain(self.rotation.last()).chain([&self.hot]) {
            let norms: Vec<_> = set.outs.iter().zip(&self.vectors).collect();
            spot::join(self.shape, &set.addends, set.sum.as_ref(), &norms, EPS)?;
        }
        Ok(())
    }

    /// Two graphs: one that joins each set in rotation, one that joins the hot set as often.
    ///
    /// # Errors
    /// What the device gives.
    pub fn record(&mut self, stream: &Stream) -> Result<[Graph<'_>; 2]> {
        let Self { batch, rotation, hot, device_vectors, .. } = self;
        let sets = rotation.len();
        let joins: Vec<_> = rotation.iter_mut().map(|set| set.join(batch, device_vectors)).collect();
        Ok([
            kernel::record_joins(stream, joins)?,
            kernel::record_join_again(stream, hot.join(batch, device_vectors), sets)?,
        ])
    }
}
