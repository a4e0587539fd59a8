//! The model on the engine that was asked for, behind one interface.

use anyhow::Result;
use paf_cuda::checkpoint::Checkpoint;
use paf_cuda::cpu::{self, Pooling};
#[cfg(feature = "cuda")]
use paf_cuda::gpu;
use paf_cuda::{BatchShape, Dtype, Schedule};

#[cfg(feature = "cuda")]
use crate::output::note;
use crate::select::{self, Backend, DeviceArguments};

/// What the largest batch takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Largest {
    pub rows: usize,
    pub sequences: usize,
}

impl Largest {
    /// Of texts that run `most` tokens together, or alone; of those without a token none runs.
    pub fn of(lengths: impl Iterator<Item = usize>, most: usize) -> Self {
        let (mut all, mut longest, mut texts) = (0, 0, 0);
        for length in lengths.filter(|&length| length > 0) {
            (all, longest, texts) = (all + length, longest.max(length), texts + 1);
        }
        // A batch has no more than `most` tokens unless it is one text.
        Self { rows: all.min(most.max(longest)).max(1), sequences: texts.min(most).max(1) }
    }
}

/// A model, ready to run.
pub enum Engine {
    Cpu(Box<cpu::Model>),
    #[cfg(feature = "cuda")]
    Gpu(Box<Gpu>),
}

/// A model on a device, and where its batches go.
#[cfg(feature = "cuda")]
pub struct Gpu {
    model: gpu::Model,
    workspace: gpu::ModelWorkspace,
    schedule: Schedule,
}

impl Engine {
    /// Says on stderr which engine it is, unless it was named.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "there is but one engine"))]
    pub fn open(
        backend: Backend,
        device: &DeviceArguments,
        dtype: Dtype,
        checkpoint: &Checkpoint,
        largest: Largest,
    ) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(device) = select::device(backend, device)? {
            let name = &device.info().name;
            match Gpu::open(&device, dtype, checkpoint, largest) {
                Ok(gpu) => {
                    if backend == Backend::Auto {
                        note(&format!("using {name}, in {dtype}"));
                    }
                    return Ok(Self::Gpu(Box::new(gpu)));
                }
                Err(paf_cuda::Error::Unsupported { what, .. }) if backend == Backend::Auto => {
                    note(&format!("{what} is not supported by the kernels for {name}: using the CPU engine"));
                }
                Err(other) => return Err(other.into()),
            }
        }
        #[cfg(not(feature = "cuda"))]
        select::check(backend)?;
        Ok(Self::Cpu(Box::new(cpu::Model::from_checkpoint(checkpoint)?)))
    }

    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Cpu(model) => model.hidden_size(),
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => gpu.model.hidden_size(),
        }
    }

    pub fn has_token_types(&self) -> bool {
        match self {
            Self::Cpu(model) => model.weights().embeddings.token_type.is_some(),
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => gpu.model.embedding_sizes().type_vocab_size.is_some(),
        }
    }

    /// Runs a batch.
    pub fn forward(&mut self, shape: &BatchShape, ids: &[u32], types: Option<&[u32]>) -> Result<Hidden<'_>> {
        Ok(match self {
            Self::Cpu(model) => {
                let values = model.forward(Schedule::Serial, shape, ids, types)?;
                Hidden::Cpu { model, shape: shape.clone(), values }
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => {
                gpu.model.forward(gpu.schedule, shape, ids, types, &mut gpu.workspace)?;
                Hidden::Gpu(gpu)
            }
        })
    }
}

#[cfg(feature = "cuda")]
impl Gpu {
    fn open(
        device: &gpu::Device,
        dtype: Dtype,
        checkpoint: &Checkpoint,
        Largest { rows, sequences }: Largest,
    ) -> paf_cuda::Result<Self> {
        let model = gpu::Model::from_checkpoint(device, checkpoint, dtype)?;
        let workspace = model.workspace(&gpu::Stream::new(device)?, rows, sequences)?;
        // Batches are of many shapes, each but for once: none to measure plans for.
        let parallel = checkpoint.config().layer.design.is_parallel();
        Ok(Self { model, workspace, schedule: if parallel { Schedule::Fused } else { Schedule::Serial } })
    }
}

/// The hidden states of a batch, where the engine has them.
pub enum Hidden<'a> {
    Cpu {
        model: &'a cpu::Model,
        shape: BatchShape,
        values: Vec<f32>,
    },
    #[cfg(feature = "cuda")]
    Gpu(&'a mut Gpu),
}

impl Hidden<'_> {
    /// One vector a sequence, `[batch, hidden_size]`.
    pub fn pool(&mut self, pooling: Pooling) -> Result<Vec<f32>> {
        Ok(match self {
            Self::Cpu { model, shape, values } => model.pool(pooling, shape, values)?,
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => gpu.model.pool(pooling, &mut gpu.workspace)?,
        })
    }

    /// Logits of some rows, `[rows.len(), vocab_size]`.
    pub fn logits(&mut self, rows: &[usize]) -> Result<Vec<f32>> {
        Ok(match self {
            Self::Cpu { model, values, .. } => {
                let size = model.hidden_size();
                let states: Vec<_> = rows.iter().flat_map(|row| &values[row * size..][..size]).copied().collect();
                model.logits(&states)?
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => gpu.model.logits(rows, &mut gpu.workspace)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::texts::groups;

    #[test]
    fn every_batch_fits_into_the_largest() {
        for (lengths, most) in [
            (&[3, 4, 0, 1, 9, 2, 0][..], 8),
            (&[9, 9], 8),
            (&[1, 1, 1, 1, 1, 1], 4),
            (&[1, 1], 100),
            (&[0, 0], 1),
            (&[], 5),
        ] {
            let largest = Largest::of(lengths.iter().copied(), most);
            for group in groups(lengths, most) {
                let group = &lengths[group];
                assert!(group.iter().sum::<usize>() <= largest.rows, "{lengths:?}, {most}: {largest:?}");
                assert!(group.iter().filter(|&&length| length > 0).count() <= largest.sequences, "{lengths:?}");
            }
            assert!(largest.rows > 0 && largest.sequences > 0);
        }
        assert_eq!(Largest::of([1, 1].into_iter(), 100), Largest { rows: 2, sequences: 2 });
    }
}
