//! A plan: the order of a layer's kernels and, where that is not left to the estimate, which of its ways each is computed in.

use std::fmt;
use std::str::FromStr;

use crate::config::Schedule;
use crate::error::{Error, Result};
use crate::gpu::attention::AttentionVariant;
use crate::gpu::gemm::GemmVariant;

/// One of a layer's products. Which of them there are depends on the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerProduct {
    /// `n·Wqkvᵀ`.
    Qkv,
    /// `act(n·W1ᵀ)`, the FFN's first.
    W1,
    /// `context·Woᵀ`, attention's output projection.
    Wo,
    /// `inner·W2ᵀ`, the FFN's second.
    W2,
    /// `[QKV | W1]`, side by side along N.
    WideFirst,
    /// `[W2 | Wo]`, one after the other along K.
    WideSecond,
}

impl LayerProduct {
    /// All six.
    pub const ALL: [Self; 6] = [Self::Qkv, Self::W1, Self::Wo, Self::W2, Self::WideFirst, Self::WideSecond];

    /// As a plan's text names it: `qkv`, `w1`, `wo`, `w2`, `wide-first` or `wide-second`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qkv => "qkv",
            Self::W1 => "w1",
            Self::Wo => "wo",
            Self::W2 => "w2",
            Self::WideFirst => "wide-first",
            Self::WideSecond => "wide-second",
        }
    }
}

impl fmt::Display for LayerProduct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a layer is run: a schedule, and variants of its kernels. Those that are not named are chosen by the static estimate, as
/// all of them are where a [`Schedule`] stands for a plan. Results are bitwise repeatable for a given device, build and plan.
///
/// Written as `fused attention=sm90:rows64 wide-first=sm90:128x96:share1x1:stages7`: the schedule, then what is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    schedule: Schedule,
    attention: Option<AttentionVariant>,
    products: [Option<GemmVariant>; LayerProduct::ALL.len()],
}

impl Plan {
    /// In what order, on which streams.
    pub fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// How attention is computed; `None`: as estimated.
    pub fn attention(&self) -> Option<AttentionVariant> {
        self.attention
    }

    /// How `product` is computed; `None`: as estimated.
    pub fn product(&self, product: LayerProduct) -> Option<GemmVariant> {
        self.products[product as usize]
    }

    /// The same plan with that way to compute attention.
    pub fn with_attention(self, variant: impl Into<Option<AttentionVariant>>) -> Self {
        Self { attention: variant.into(), ..self }
    }

    /// The same plan with that way to compute `product`; of no account if the schedule does not have it.
    pub fn with_product(mut self, product: LayerProduct, variant: impl Into<Option<GemmVariant>>) -> Self {
        self.products[product as usize] = variant.into();
        self
    }

    /// Whether all is left to the estimate.
    pub(in crate::gpu) fn is_estimated(&self) -> bool {
        *self == Self::from(self.schedule)
    }

    /// Whether the result is the same to the last bit: the same kernels, in another order at most.
    pub fn agrees_bitwise(&self, other: &Self) -> bool {
        self.schedule.agrees_bitwise(other.schedule) && *self == Self { schedule: self.schedule, ..*other }
    }
}

impl From<Schedule> for Plan {
    fn from(schedule: Schedule) -> Self {
        Self { schedule, attention: None, products: [None; LayerProduct::ALL.len()] }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.schedule)?;
        if let Some(variant) = self.attention {
            write!(f, " attention={variant}")?;
        }
        for product in LayerProduct::ALL {
            if let Some(variant) = self.product(product) {
                write!(f, " {product}={variant}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Plan {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split(' ');
        let mut plan = Self::from(words.next().unwrap_or_default().parse::<Schedule>()?);
        let unknown = |word: &str| Error::InvalidConfig {
            field: "plan",
            got: format!("{word:?}"),
            expected: format!(
                "attention=VARIANT or PRODUCT=VARIANT, each at most once, PRODUCT one of {}",
                LayerProduct::ALL.map(LayerProduct::name).join(", ")
            ),
        };
        for word in words {
            let (name, variant) = word.split_once('=').ok_or_else(|| unknown(word))?;
            if name == "attention" && plan.attention.is_none() {
                plan.attention = Some(variant.parse()?);
                continue;
            }
            let product = LayerProduct::ALL.into_iter().find(|product| product.name() == name);
            match product.filter(|&product| plan.product(product).is_none()) {
                Some(product) => plan = plan.with_product(product, variant.parse::<GemmVariant>()?),
                None => return Err(unknown(word)),
            }
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_read_back() {
        let wide = "sm90:128x96:share1x1:stages7".parse::<GemmVariant>().unwrap();
        let rows = AttentionVariant::Sm90 { rows: 64, half: false };
        let plan = Plan::from(Schedule::Fused).with_product(LayerProduct::WideFirst, wide).with_attention(rows);
        assert_eq!(plan.to_string(), "fused attention=sm90:rows64 wide-first=sm90:128x96:share1x1:stages7");
        for plan in [plan, Schedule::TwoStream.into()] {
            assert_eq!(plan.to_string().parse::<Plan>().unwrap(), plan);
        }
        for bad in [
            "",
            "auto",
            "fused ",
            "fused w3=sm80:64x64",
            "fused w1",
            "fused w1=sm80:7x7",
            "fused attention=64",
            "fused w1=sm80:64x64 w1=sm80:64x64",
            "fused attention=sm80:rows64 attention=sm80:rows64",
        ] {
            assert!(bad.parse::<Plan>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_the_same_kernels_give_the_same_bits() {
        let tile = GemmVariant::Sm80 { tile: 1 };
        let [serial, two_stream, fused] = [Schedule::Serial, Schedule::TwoStream, Schedule::Fused].map(Plan::from);
        assert!(serial.agrees_bitwise(&two_stream) && !serial.agrees_bitwise(&fused) && fused.agrees_bitwise(&fused));
        let tuned = serial.with_product(LayerProduct::Wo, tile);
        assert!(!serial.agrees_bitwise(&tuned) && !two_stream.agrees_bitwise(&tuned));
        assert!(two_stream.with_product(LayerProduct::Wo, tile).agrees_bitwise(&tuned));
        assert!(tuned.with_product(LayerProduct::Wo, None).is_estimated() && !tuned.is_estimated());
    }
}
