//! A log-linear histogram of durations: 16 buckets to an octave, so that a bucket is at most 1/16 of its lower bound wide.
//!
//! Kernel and user space use the same two functions, so buckets can be added up across CPUs, ticks and hosts without any
//! further error. The midpoint of a bucket is within 3.2 % of every value in it. Values are kept in units of 1,024 ns: an I/O is never measured better
//! than that, and buckets below it would only cost memory.

/// Nanoseconds to a unit, as a power of two.
pub const UNIT_SHIFT: u32 = 10;
/// Linear buckets to an octave, as a power of two.
pub const SUB_BITS: u32 = 4;
const SUBS: u64 = 1 << SUB_BITS;
/// Number of buckets. The last one takes everything from 2^32 units (73 minutes) on.
pub const BUCKETS: u16 = ((32 - SUB_BITS) << SUB_BITS) as u16 + (1 << SUB_BITS) + 1;

/// The bucket of a duration.
#[inline(always)]
pub const fn bucket(ns: u64) -> u16 {
    let units = ns >> UNIT_SHIFT;
    if units < SUBS {
        return units as u16;
    }
    if units >> 32 != 0 {
        return BUCKETS - 1;
    }
    let octave = log2(units as u32);
    (((octave - SUB_BITS) << SUB_BITS) + (units >> (octave - SUB_BITS)) as u32) as u16
}

/// The shortest duration of a bucket, in nanoseconds.
pub const fn lower_bound_ns(bucket: u16) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * SUBS {
        return bucket << UNIT_SHIFT;
    }
    let octave = (bucket >> SUB_BITS) - 1;
    ((bucket & (SUBS - 1)) + SUBS) << (octave + UNIT_SHIFT as u64)
}

/// The first duration above a bucket, in nanoseconds. The last bucket has no end; it answers with its start.
pub const fn upper_bound_ns(bucket: u16) -> u64 {
    lower_bound_ns(if bucket + 1 < BUCKETS { bucket + 1 } else { BUCKETS - 1 })
}

/// floor(log2(x)) for x > 0, without a count-leading-zeros instruction, which the kernel's machine lacks.
#[inline(always)]
const fn log2(mut x: u32) -> u32 {
    let mut r = ((x > 0xffff) as u32) << 4;
    x >>= r;
    let mut s = ((x > 0xff) as u32) << 3;
    x >>= s;
    r |= s;
    s = ((x > 0xf) as u32) << 2;
    x >>= s;
    r |= s;
    s = ((x > 0x3) as u32) << 1;
    x >>= s;
    r |= s;
    r | (x >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn log2_agrees_with_the_standard_library() {
        for shift in 0..32 {
            for near in [-1i64, 0, 1] {
                let x = (1i64 << shift) + near;
                if x > 0 {
                    assert_eq!(log2(x as u32), (x as u32).ilog2(), "{x}");
                }
            }
        }
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for b in 0..BUCKETS - 1 {
            assert!(lower_bound_ns(b) < upper_bound_ns(b));
            assert_eq!(bucket(lower_bound_ns(b)), b);
            assert_eq!(bucket(upper_bound_ns(b) - 1), b);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_values_within_a_sixteenth(ns in 0u64..(1 << 42)) {
            let b = bucket(ns);
            prop_assert!(lower_bound_ns(b) <= ns && ns < upper_bound_ns(b));
            let width = upper_bound_ns(b) - lower_bound_ns(b);
            prop_assert!(width <= (lower_bound_ns(b) / 16).max(1 << UNIT_SHIFT));
        }
    }
}
