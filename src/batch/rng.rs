//! The random numbers that decide an order.

/// The generator of Steele, Lea & Flood (2014), seeded by the BLAKE3 of a purpose.
pub(super) struct SplitMix64(u64);

impl SplitMix64 {
    pub fn new(seed: u64, epoch: u64, window: u64) -> Self {
        let mut key = Vec::from(*b"remit shuffle 1");
        for number in [seed, epoch, window] {
            key.extend(number.to_le_bytes());
        }
        Self::of_key(&key)
    }

    /// Returns the generator that belongs to a key.
    pub fn of_key(key: &[u8]) -> Self {
        let digest = blake3::hash(key);
        let (first, _) = digest
            .as_bytes()
            .split_first_chunk::<8>()
            .unwrap_or((&[0; 8], &[]));
        Self(u64::from_le_bytes(*first))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, each equally likely (Lemire, arXiv 1805.10941).
    fn below(&mut self, n: u64) -> u64 {
        loop {
            let product = u128::from(self.next()) * u128::from(n);
            // The low half of the product says whether this draw belongs to the uneven rest.
            if product as u64 >= n.wrapping_neg() % n {
                return (product >> 64) as u64;
            }
        }
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            items.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_shuffle_is_a_permutation(n in 0_usize..200, seed in any::<u64>()) {
            let mut items: Vec<usize> = (0..n).collect();
            SplitMix64::new(seed, 0, 0).shuffle(&mut items);
            items.sort_unstable();
            prop_assert_eq!(items, (0..n).collect::<Vec<_>>());
        }
    }
}
