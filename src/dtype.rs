//! The two 16-bit element types that the kernels compute in.

use half::{bf16, f16};

/// Element type of activations and weights on a device. Products accumulate in fp32 for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Dtype {
    /// bfloat16: 8 bits of exponent, 8 of significand (7 stored).
    #[default]
    Bf16,
    /// IEEE binary16: 5 bits of exponent, 11 of significand (10 stored).
    F16,
}

impl Dtype {
    /// Bytes an element takes.
    pub const BYTES: usize = 2;

    /// `bf16` or `f16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Distance from 1 to the next larger number, 2⁻⁷ or 2⁻¹⁰.
    pub const fn epsilon(self) -> f64 {
        match self {
            Self::Bf16 => 1.0 / 128.0,
            Self::F16 => 1.0 / 1024.0,
        }
    }

    /// Bits of the number of this type nearest to `value` (ties to even).
    pub fn to_bits(self, value: f32) -> u16 {
        match self {
            Self::Bf16 => bf16::from_f32(value).to_bits(),
            Self::F16 => f16::from_f32(value).to_bits(),
        }
    }

    /// Value of a number of this type given its bits; exact.
    pub fn from_bits(self, bits: u16) -> f32 {
        match self {
            Self::Bf16 => bf16::from_bits(bits).to_f32(),
            Self::F16 => f16::from_bits(bits).to_f32(),
        }
    }

    /// `value` rounded to this type.
    pub fn round(self, value: f32) -> f32 {
        self.from_bits(self.to_bits(value))
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Dtype {
    type Err = crate::Error;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "fp16" | "float16" => Ok(Self::F16),
            _ => Err(crate::Error::InvalidConfig {
                field: "dtype",
                got: format!("{s:?}"),
                expected: "bf16 or f16".into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even() {
        // Halfway between 1 and 1 + ε goes to the even neighbour; a little above it goes up.
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let half_step = (dtype.epsilon() / 2.0) as f32;
            assert_eq!(dtype.round(1.0 + half_step), 1.0);
            assert_eq!(dtype.round(1.0 + half_step * 1.01), 1.0 + 2.0 * half_step);
            assert_eq!(dtype.round(1.0 + 3.0 * half_step), 1.0 + 4.0 * half_step);
        }
        assert!(Dtype::F16.round(70000.0).is_infinite());
        assert!(Dtype::Bf16.round(70000.0).is_finite());
    }

    #[test]
    fn names_parse_back() {
        for dtype in [Dtype::Bf16, Dtype::F16] {
            assert_eq!(dtype.name().parse::<Dtype>().unwrap(), dtype);
        }
        assert!("f32".parse::<Dtype>().unwrap_err().to_string().contains("\"f32\""));
    }
}
