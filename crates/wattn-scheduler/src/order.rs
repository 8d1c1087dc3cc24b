//! In which order workgroups of unlike weight start.

use std::cmp::Reverse;

use crate::capabilities::{Capabilities, DeviceKind};

/// How a device shares out the workgroups of a dispatch, and so in which order they should come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// GPUs: whoever is free takes the next one. The heaviest come first, so that the last ones to start are the lightest.
    HeaviestFirst,
    /// CPU drivers (Mesa's llvmpipe): each thread takes as many as the others, one after the other from where it begins. Heavy and light
    /// ones are spread so that halves, quarters and so on of the list weigh alike.
    Spread,
}

impl Order {
    /// The order that suits a device.
    #[must_use]
    pub fn of(device: &Capabilities) -> Self {
        if device.kind == DeviceKind::Cpu { Self::Spread } else { Self::HeaviestFirst }
    }

    /// Brings a list into this order. What weighs the same stays in order, since neighbours share what they walk.
    pub(crate) fn arrange<T: Copy>(self, list: &mut Vec<T>, weight: impl Fn(&T) -> u32) {
        if list.windows(2).all(|pair| weight(&pair[0]) == weight(&pair[1])) {
            return;
        }
        list.sort_by_key(|entry| Reverse(weight(entry)));
        if self == Self::Spread {
            // The lowest bit of its rank tells in which half an entry comes, the next one in which quarter.
            let mut ranked: Vec<(usize, T)> = list.iter().copied().enumerate().collect();
            ranked.sort_by_key(|(rank, _)| rank.reverse_bits());
            list.clear();
            list.extend(ranked.into_iter().map(|(_, entry)| entry));
        }
    }

    /// The load of the busiest of `workers` over their mean, for a list in this order: 1 is even.
    pub(crate) fn balance(self, weights: &[u32], workers: u32) -> f64 {
        let count = workers.max(1) as usize;
        let mut loads = vec![0_u64; count];
        match self {
            Self::HeaviestFirst => {
                for &weight in weights {
                    if let Some(load) = loads.iter_mut().min() {
                        *load += u64::from(weight);
                    }
                }
            }
            Self::Spread => {
                for (n, &weight) in weights.iter().enumerate() {
                    loads[n * count / weights.len()] += u64::from(weight);
                }
            }
        }
        let (most, total) = (loads.iter().max().copied().unwrap_or(0), loads.iter().sum::<u64>());
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let ratio = most as f64 * count as f64 / total as f64;
        if total == 0 { 1.0 } else { ratio }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_and_quarters_of_a_spread_list_weigh_alike() {
        let mut list: Vec<u32> = (1..=64).collect();
        Order::Spread.arrange(&mut list, |&weight| weight);
        for part in [32, 16, 8] {
            let weights: Vec<u32> = list.chunks(part).map(|chunk| chunk.iter().sum()).collect();
            let (least, most) = (weights.iter().min().unwrap(), weights.iter().max().unwrap());
            assert!(most - least <= 64, "{weights:?}");
        }
        let mut sorted = list.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (1..=64).collect::<Vec<_>>());
        assert!(Order::Spread.balance(&list, 4) < 1.05);
        list.sort_unstable();
        assert!(Order::Spread.balance(&list, 4) > 1.7);
    }

    #[test]
    fn the_heaviest_come_first_and_equals_stay_in_order() {
        let mut list = vec![(3, 'a'), (5, 'b'), (3, 'c'), (5, 'd')];
        Order::HeaviestFirst.arrange(&mut list, |&(weight, _)| weight);
        assert_eq!(list, [(5, 'b'), (5, 'd'), (3, 'a'), (3, 'c')]);
        let same: Vec<_> = (0..5).map(|n| (7, n)).collect();
        let mut list = same.clone();
        Order::Spread.arrange(&mut list, |&(weight, _)| weight);
        assert_eq!(list, same);
    }
}
