//! The order of the axes of a tensor, to and from the order of the oracle.

use crate::Tensor;

/// The order of the axes of q, k, v and out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[batch, heads, sequence, dim]`
    Bhsd,
    /// `[batch, sequence, heads, dim]`
    Bshd,
    /// `[total, heads, dim]`: sequences of different lengths one after the other.
    Packed,
}

impl Layout {
    /// Number of axes.
    pub(crate) fn rank(self) -> usize {
        if self == Self::Packed { 3 } else { 4 }
    }

    /// The extents in this order, from `[batch, heads, sequence, dim]`.
    pub(crate) fn shape(self, [batch, heads, len, dim]: [usize; 4]) -> Vec<usize> {
        match self {
            Self::Bhsd => vec![batch, heads, len, dim],
            Self::Bshd => vec![batch, len, heads, dim],
            Self::Packed => vec![len, heads, dim],
        }
    }

    /// `[batch, heads, sequence, dim]` of extents in this order.
    pub(crate) fn axes(self, shape: &[usize]) -> [usize; 4] {
        match (self, shape) {
            (Self::Bhsd, &[batch, heads, len, dim]) => [batch, heads, len, dim],
            (Self::Bshd, &[batch, len, heads, dim]) => [batch, heads, len, dim],
            (Self::Packed, &[len, heads, dim]) => [1, heads, len, dim],
            (layout, shape) => panic!("{shape:?} is not {layout:?}"),
        }
    }

    /// Where row `n` of head `h` and batch entry `b` lies.
    fn row(self, [_, heads, len, _]: [usize; 4], b: usize, h: usize, n: usize) -> usize {
        match self {
            Self::Bhsd => (b * heads + h) * len + n,
            Self::Bshd | Self::Packed => (b * len + n) * heads + h,
        }
    }

    /// The batch entry and the token of element `ix`.
    pub(crate) fn entry_and_token(self, [_, heads, len, dim]: [usize; 4], ix: usize) -> [usize; 2] {
        let row = ix / dim;
        match self {
            Self::Bhsd => [row / len / heads, row % len],
            Self::Bshd | Self::Packed => [row / heads / len, row / heads % len],
        }
    }

    /// The elements of a tensor as the oracle takes them: `[batch, heads, sequence, dim]`.
    pub(crate) fn heads_first(self, tensor: &Tensor) -> Vec<f64> {
        let axes @ [batch, heads, len, dim] = self.axes(&tensor.shape);
        let mut turned = Vec::with_capacity(tensor.values.len());
        for b in 0..batch {
            for h in 0..heads {
                for n in 0..len {
                    let start = self.row(axes, b, h, n) * dim;
                    turned.extend(tensor.values[start..start + dim].iter().map(|&x| f64::from(x)));
                }
            }
        }
        turned
    }

    /// The reverse of [`heads_first`](Self::heads_first): pairs of the element index in this order and its value.
    pub(crate) fn elements(self, shape: &[usize], heads_first: Vec<f64>) -> Vec<(usize, f64)> {
        let axes @ [_, heads, len, dim] = self.axes(shape);
        let place = |(ix, x): (usize, f64)| {
            let (row, d) = (ix / dim, ix % dim);
            (self.row(axes, row / len / heads, row / len % heads, row % len) * dim + d, x)
        };
        heads_first.into_iter().enumerate().map(place).collect()
    }
}
