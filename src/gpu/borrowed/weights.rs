//! Weights in someone else's memory, on their way to an encoder's.

use std::ffi::c_void;

use cudarc::driver::result;
use half::{bf16, f16};

use crate::config::LayerConfig;
use crate::error::{Error, Result};
use crate::gpu::device::Device;
use crate::weights::{Elements, LAYER_FIELD_NAMES, LAYER_FIELDS, LayerElements, field_lengths};

/// Element type of weights that are to be rounded to an encoder's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    /// IEEE binary32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE binary16.
    F16,
}

impl ElementType {
    const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// `bytes` as f32, exactly. There are as many as `to` has room for.
    fn convert(self, bytes: &[u8], to: &mut [f32]) {
        match self {
            Self::F32 => to.iter_mut().zip(bytes.as_chunks().0).for_each(|(to, &of)| *to = f32::from_ne_bytes(of)),
            Self::Bf16 => {
                to.iter_mut().zip(bytes.as_chunks().0).for_each(|(to, &of)| *to = bf16::from_ne_bytes(of).to_f32());
            }
            Self::F16 => {
                to.iter_mut().zip(bytes.as_chunks().0).for_each(|(to, &of)| *to = f16::from_ne_bytes(of).to_f32());
            }
        }
    }
}

/// Whose memory a pointer leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// The host's.
    Host,
    /// A device's.
    Device,
}

/// Weights of one layer where someone else has them.
#[derive(Debug, Clone, Copy)]
pub struct BorrowedLayer {
    /// Of every field.
    pub element_type: ElementType,
    /// Of every field.
    pub location: Location,
    /// The fields of [`LayerWeights`](crate::weights::LayerWeights), in the order of
    /// [`LayerWeights::fields`](crate::weights::LayerWeights::fields), row-major without gaps, aligned or not. Null stands for zeros
    /// where it is a bias or β, for ones where it is γ; a matrix has to be there, the gate's where there is a gate.
    pub fields: [*const c_void; LAYER_FIELDS],
}

impl BorrowedLayer {
    pub(in crate::gpu) fn elements<'a>(
        &'a self,
        device: &'a Device,
        config: &LayerConfig,
    ) -> Result<LayerElements<'a>> {
        let lengths = field_lengths(config);
        for ((name, &pointer), &len) in LAYER_FIELD_NAMES.iter().zip(&self.fields).zip(&lengths) {
            if pointer.is_null() && len > 0 && name.starts_with("w_") {
                return Err(Error::mismatch("weights", name, "null", format!("the address of {len} elements")));
            }
        }
        Ok(LayerElements(std::array::from_fn(|i| {
            let name = LAYER_FIELD_NAMES[i];
            let field = Field {
                device,
                element_type: self.element_type,
                location: self.location,
                address: self.fields[i].expose_provenance(),
                len: lengths[i],
                absent: if name.ends_with("gamma") { 1.0 } else { 0.0 },
            };
            (name, Box::new(field) as Box<dyn Elements + 'a>)
        })))
    }
}

struct Field<'a> {
    device: &'a Device,
    element_type: ElementType,
    location: Location,
    address: usize,
    len: usize,
    /// What a null pointer stands for.
    absent: f32,
}

impl Elements for Field<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, first: usize, to: &mut [f32]) -> Result<()> {
        if self.address == 0 {
            to.fill(self.absent);
            return Ok(());
        }
        let (start, bytes) = (first * self.element_type.bytes(), to.len() * self.element_type.bytes());
        match self.location {
            Location::Host => {
                let pointer = std::ptr::with_exposed_provenance::<u8>(self.address).wrapping_add(start);
                // SAFETY: inside the field, which nothing writes during the call, as whoever made the layer has promised.
                self.element_type.convert(unsafe { std::slice::from_raw_parts(pointer, bytes) }, to);
            }
            Location::Device => {
                let mut staged = vec![0u8; bytes];
                self.device.enter()?;
                // SAFETY: as above, of a device's memory.
                let copied = unsafe { result::memcpy_dtoh_sync(&mut staged, (self.address + start) as u64) };
                self.device.check("copying weights from the device", copied)?;
                self.element_type.convert(&staged, to);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_type_is_read_exactly() {
        let values = [0.0, -1.5, 0.156_25, 65504.0, f32::NEG_INFINITY];
        let f32s: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        let bf16s: Vec<u8> = values.iter().flat_map(|&value| bf16::from_f32(value).to_ne_bytes()).collect();
        let f16s: Vec<u8> = values.iter().flat_map(|&value| f16::from_f32(value).to_ne_bytes()).collect();
        let rounded = [0.0, -1.5, 0.156_25, 65536.0, f32::NEG_INFINITY]; // 65504 needs 11 bits, bfloat16 has 8
        for (element_type, bytes, expected) in
            [(ElementType::F32, f32s, values), (ElementType::Bf16, bf16s, rounded), (ElementType::F16, f16s, values)]
        {
            assert_eq!(bytes.len(), values.len() * element_type.bytes());
            let mut got = [f32::NAN; 5];
            element_type.convert(&bytes, &mut got);
            assert_eq!(got, expected, "{element_type:?}");
        }
    }
}
