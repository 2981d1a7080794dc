//! The kernel's description of its own types (BTF, `Documentation/bpf/btf.rst`): where a field lies, which number a function has.
//!
//! Read in place. aya finds types by name and keeps their fields to itself; what else there is for Rust builds all of the
//! kernel's hundred thousand types to tell of two, or cannot be linked statically under this project's licences.

/// Where the running kernel describes its types.
pub(super) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// `struct btf_header` without what follows the strings' length.
const HEADER: usize = 24;
const MAGIC: u32 = 0xeb9f;

/// Kinds of types (`BTF_KIND_*`).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const ENUM64: u32 = 19;
    /// The last one that there is.
    pub(super) const LAST: u32 = ENUM64;
}

/// Structures within structures before it must be an error.
const DEPTH: u32 = 8;

/// A field of a few bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BitField {
    /// Offset of its first bit in the structure.
    pub(super) offset: u32,
    /// How many bits.
    pub(super) width: u32,
}

/// A description of types, in memory order of this machine.
pub(super) struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type lies, by its number; 0 is `void`.
    starts: Vec<usize>,
}

/// The part that all kinds of types have (`struct btf_type`), and what follows it.
#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    kind: u32,
    /// Whether offsets of members say their width, too.
    has_widths: bool,
    /// As many members, or whatever the kind has.
    count: usize,
    rest: &'a [u8],
}

impl<'a> Types<'a> {
    /// Finds the types; `None` if this is no such description, or has kinds that this build does not know.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let start = word(bytes, 4)? as usize;
        if word(bytes, 0)? & 0xffff != MAGIC || start < HEADER {
            return None;
        }
        let part = |offset: u32, length: u32| {
            let begin = start.checked_add(offset as usize)?;
            bytes.get(begin..begin.checked_add(length as usize)?)
        };
        let types = part(word(bytes, 8)?, word(bytes, 12)?)?;
        let strings = part(word(bytes, 16)?, word(bytes, 20)?)?;
        let mut this = Self { types, strings, starts: vec![usize::MAX] };
        let mut at = 0;
        while at < types.len() {
            this.starts.push(at);
            at += this.length(this.at(at)?)?;
        }
        Some(this)
    }

    /// The number of a function.
    pub(super) fn function(&self, name: &str) -> Option<u32> {
        let found = self.find(kind::FUNC, name)?;
        u32::try_from(found).ok()
    }

    /// Where a structure has a field of bits, within what has no names of its own too.
    pub(super) fn bits(&self, structure: &str, field: &str) -> Option<BitField> {
        self.bits_within(self.find(kind::STRUCT, structure)?, field, DEPTH)
    }

    fn bits_within(&self, structure: usize, field: &str, depth: u32) -> Option<BitField> {
        let found = self.get(structure)?;
        if !matches!(found.kind, kind::STRUCT | kind::UNION) || depth == 0 {
            return None;
        }
        found.rest.chunks_exact(12).take(found.count).find_map(|member| {
            let (name, kind, place) = (word(member, 0)?, word(member, 4)?, word(member, 8)?);
            let (offset, width) =
                if found.has_widths { (place & 0xff_ffff, place >> 24) } else { (place, 0) };
            if self.is_called(name, field) {
                return (width > 0).then_some(BitField { offset, width });
            }
            let inner =
                self.is_called(name, "").then(|| self.bits_within(kind as usize, field, depth - 1))??;
            Some(BitField { offset: inner.offset.checked_add(offset)?, width: inner.width })
        })
    }

    fn find(&self, kind: u32, name: &str) -> Option<usize> {
        (1..self.starts.len()).find(|&number| {
            self.get(number).is_some_and(|found| found.kind == kind && self.is_called(found.name, name))
        })
    }

    fn get(&self, number: usize) -> Option<Type<'a>> {
        self.at(*self.starts.get(number)?)
    }

    fn at(&self, start: usize) -> Option<Type<'a>> {
        let bytes = self.types.get(start..)?;
        let (name, info) = (word(bytes, 0)?, word(bytes, 4)?);
        Some(Type {
            name,
            kind: info >> 24 & 0x1f,
            has_widths: info >> 31 == 1,
            count: (info & 0xffff) as usize,
            rest: bytes.get(12..)?,
        })
    }

    /// Bytes of a type.
    fn length(&self, of: Type<'a>) -> Option<usize> {
        let follow = match of.kind {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => of.count * 12,
            kind::ENUM | kind::FUNC_PROTO => of.count * 8,
            0 => return None,
            unknown if unknown > kind::LAST => return None,
            _ => 0,
        };
        Some(12 + follow)
    }

    fn is_called(&self, at: u32, name: &str) -> bool {
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        rest.strip_prefix(name.as_bytes()).is_some_and(|end| end.first() == Some(&0))
    }
}

/// A number of four bytes in this machine's order.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT: u32 = kind::INT << 24;
    const STRUCT: u32 = kind::STRUCT << 24;
    const UNION: u32 = kind::UNION << 24;
    const FUNC: u32 = kind::FUNC << 24;
    /// Members of such a structure say their width.
    const WIDTHS: u32 = 1 << 31;
    /// "", "u8", "sk_buff", "sum", "len", "cast".
    const STRINGS: &[u8] = b"\0u8\0sk_buff\0sum\0len\0cast\0";

    fn description(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let length = |bytes: usize| u32::try_from(bytes).unwrap();
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let header = [24, 0, length(types.len()), length(types.len()), length(strings.len())];
        let mut bytes = [&0xeb9fu16.to_ne_bytes()[..], &[1, 0]].concat();
        bytes.extend(header.into_iter().flat_map(u32::to_ne_bytes));
        [bytes, types, strings.to_vec()].concat()
    }

    /// `struct sk_buff { u8 len; union { struct { u8 u8: 3; u8 sum: 2; } }; }`, and a function.
    fn sample() -> Vec<u8> {
        let inner = [0, STRUCT | WIDTHS | 2, 1, 1, 1, 3 << 24, 12, 1, 2 << 24 | 5];
        let union = [0, UNION | 1, 1, 0, 2, 0];
        let outer = [4, STRUCT | 2, 2, 16, 1, 0, 0, 3, 64];
        let types = [&[1, INT, 1, 8][..], &inner, &union, &outer, &[20, FUNC, 0]].concat();
        description(&types, STRINGS)
    }

    #[test]
    fn fields_are_found_in_what_has_no_name() {
        let sample = sample();
        let types = Types::parse(&sample).unwrap();
        assert_eq!(types.bits("sk_buff", "sum"), Some(BitField { offset: 69, width: 2 }));
        assert_eq!(types.bits("sk_buff", "len"), None, "a whole byte");
        assert_eq!(types.bits("sk_buff", "nothing"), None);
        assert_eq!(types.bits("u8", "sum"), None);
    }

    #[test]
    fn functions_have_numbers() {
        let sample = sample();
        let types = Types::parse(&sample).unwrap();
        assert_eq!(types.function("cast"), Some(5));
        assert_eq!(types.function("sk_buff"), None, "no function");
        assert_eq!(types.function("cas"), None);
    }

    #[test]
    fn garbage_is_no_description() {
        let whole = sample();
        for length in 0..whole.len() {
            assert!(Types::parse(&whole[..length]).is_none(), "{length} bytes of {}", whole.len());
        }
        assert!(Types::parse(&description(&[0, 31 << 24, 0], STRINGS)).is_none(), "an unknown kind");
        let endless = description(&[4, STRUCT | 1, 1, 0, 1, 0], STRINGS);
        assert_eq!(
            Types::parse(&endless).unwrap().bits("sk_buff", "sum"),
            None,
            "a structure that has itself"
        );
    }
}
