//! The cache of flows in memory of this CPU, and the epochs that all CPUs share.
//!
//! **An entry is whole or not used.** Programs of both hooks run with soft interrupts off, so nobody comes between two words
//! of an entry on today's kernels. Should one program interrupt another on a CPU nevertheless, an entry has a version: who
//! writes makes it odd, and leaves an entry alone that is odd; who reads compares it before and after. The one that interrupts
//! ends before the other goes on, so whatever the two were doing, a mixture is never found under an even version that stands.
//! All accesses are volatile, which keeps the compiler from changing their order; a CPU sees its own in theirs.
//!
//! **An epoch is a random number**, not a count: the compiler has no atomic addition for this target, and two CPUs that count at
//! once would count once. Of two that write at once either number will do, as both are new, once in four billion times
//! excepted. It is written after the flow table. CPUs that show others their writes in another order (arm64) may let an answer
//! stand for as long as that takes; it holds for a tenth of a second then.
#![expect(unsafe_code, reason = "map values are shared memory behind raw pointers")]

use core::mem::offset_of;

use aya_ebpf::{
    helpers::bpf_get_prandom_u32,
    macros::map,
    maps::{Array, PerCpuArray},
};
use proxy_common::{
    addr::Addr,
    backend::{BackendId, Generation},
    cache::{Answer, CachePage, CachedFlow, EPOCHS, Ground, PAGES, Place, TupleHash},
    endian::Be16,
    flow::{FlowFlags, FlowState},
    frontend::ServiceId,
    lb::Translation,
    time::Ticks,
    tuple::{Endpoint, FlowKey},
};
use zerocopy::transmute;

#[map]
static FLOW_CACHE: PerCpuArray<CachePage> = PerCpuArray::with_max_entries(PAGES, 0);
#[map]
static FLOW_EPOCHS: Array<u32> = Array::with_max_entries(EPOCHS, 0);

const WORD: usize = size_of::<u32>();
/// Words of a key.
const KEY_WORDS: usize = size_of::<FlowKey>() / WORD;

/// This CPU's entry for tuples with a hash.
#[inline(always)]
fn entry(hash: TupleHash) -> Option<*mut CachedFlow> {
    let Place { page, at } = hash.place(PAGES);
    let page = FLOW_CACHE.get_ptr_mut(page)?;
    // SAFETY: a position within the page, which the verifier proves again.
    Some(unsafe { (&raw mut (*page).entries).cast::<CachedFlow>().add(at) })
}

/// Reads an entry's version.
#[inline(always)]
fn version(entry: *const CachedFlow) -> u64 {
    // SAFETY: an aligned word.
    unsafe { (&raw const (*entry).version).read_volatile() }
}

/// Reads the word of an entry at an offset in bytes.
#[inline(always)]
fn word(entry: *const CachedFlow, at: usize) -> u32 {
    // SAFETY: `at` is the offset of an aligned word of the entry.
    unsafe { entry.cast::<u32>().add(at / WORD).read_volatile() }
}

/// Writes it.
#[inline(always)]
fn put(entry: *mut CachedFlow, at: usize, value: u32) {
    // SAFETY: as above.
    unsafe { entry.cast::<u32>().add(at / WORD).write_volatile(value) };
}

/// A word of a key, where it lies: a copy of all is too much for a program's stack.
#[inline(always)]
fn word_of(key: &FlowKey, index: usize) -> u32 {
    // SAFETY: a key is so many aligned words without padding, and `index` is less than their number.
    unsafe { (&raw const *key).cast::<u32>().add(index).read() }
}

/// What this CPU remembers for a tuple.
#[inline(always)]
pub(crate) fn recall(key: &FlowKey, hash: TupleHash) -> Option<Answer> {
    const GROUND: usize = offset_of!(CachedFlow, ground);
    const ADDRESS: usize = offset_of!(CachedFlow, address);
    let entry = entry(hash)?;
    let before = version(entry);
    let mut difference = 0;
    let mut index = 0;
    while index < KEY_WORDS {
        // One comparison for the verifier, which would walk each way out.
        difference |= word(entry, offset_of!(CachedFlow, key) + index * WORD) ^ word_of(key, index);
        index += 1;
    }
    if difference != 0 {
        return None;
    }
    let [state, direction, flags, reserved] = word(entry, GROUND + offset_of!(Ground, state)).to_ne_bytes();
    let ground = Ground {
        epoch: word(entry, GROUND + offset_of!(Ground, epoch)),
        learned: Ticks(word(entry, GROUND + offset_of!(Ground, learned))),
        lifetime: Ticks(word(entry, GROUND + offset_of!(Ground, lifetime))),
        service: ServiceId(word(entry, GROUND + offset_of!(Ground, service))),
        backend: BackendId(word(entry, GROUND + offset_of!(Ground, backend))),
        generation: Generation(word(entry, GROUND + offset_of!(Ground, generation))),
        state: FlowState(state),
        direction: transmute!(direction),
        flags: FlowFlags(flags),
        reserved,
    };
    let address = [0, 1, 2, 3].map(|index| word(entry, ADDRESS + index * WORD));
    let [port, other_port]: [Be16; 2] = transmute!(word(entry, offset_of!(CachedFlow, port)));
    let after = version(entry);
    if before & 1 | before ^ after != 0 {
        return None;
    }
    let end = Endpoint { address: Addr::from_v6_words(address), port };
    Some(Answer::new(end, other_port, ground))
}

/// Remembers an answer, unless another one has the place.
#[inline(always)]
pub(crate) fn learn(key: &FlowKey, hash: TupleHash, answer: &Answer) {
    const GROUND: usize = offset_of!(CachedFlow, ground);
    const ADDRESS: usize = offset_of!(CachedFlow, address);
    let Some(entry) = entry(hash) else {
        return;
    };
    let before = version(entry);
    // SAFETY: this CPU's own entry. What is half one answer and half another gives the place away or does not.
    if before & 1 != 0 || !unsafe { (*entry).gives_way(key, answer.ground.learned) } {
        return;
    }
    let set_version = |version| {
        // SAFETY: an aligned word.
        unsafe { (&raw mut (*entry).version).write_volatile(version) };
    };
    set_version(before.wrapping_add(1));
    let mut index = 0;
    while index < KEY_WORDS {
        put(entry, offset_of!(CachedFlow, key) + index * WORD, word_of(key, index));
        index += 1;
    }
    let Answer { translation: Translation { end, other_port, .. }, ground } = answer;
    let [a, b, c, d] = end.address.words();
    put(entry, ADDRESS, a);
    put(entry, ADDRESS + WORD, b);
    put(entry, ADDRESS + 2 * WORD, c);
    put(entry, ADDRESS + 3 * WORD, d);
    put(entry, offset_of!(CachedFlow, port), transmute!([end.port, *other_port]));
    put(entry, GROUND + offset_of!(Ground, epoch), ground.epoch);
    put(entry, GROUND + offset_of!(Ground, learned), ground.learned.0);
    put(entry, GROUND + offset_of!(Ground, lifetime), ground.lifetime.0);
    put(entry, GROUND + offset_of!(Ground, service), ground.service.0);
    put(entry, GROUND + offset_of!(Ground, backend), ground.backend.0);
    put(entry, GROUND + offset_of!(Ground, generation), ground.generation.0);
    let Ground { state, direction, flags, reserved, .. } = *ground;
    let facts = [state.0, transmute!(direction), flags.0, reserved];
    put(entry, GROUND + offset_of!(Ground, state), u32::from_ne_bytes(facts));
    set_version(before.wrapping_add(2));
}

/// The epoch of tuples with this hash.
#[inline(always)]
pub(crate) fn epoch(hash: TupleHash) -> u32 {
    // SAFETY: an aligned word that other CPUs write at any time.
    FLOW_EPOCHS.get_ptr(hash.epoch()).map_or(0, |epoch| unsafe { epoch.read_volatile() })
}

/// Begins another epoch.
#[inline(always)]
pub(crate) fn outdate(hash: TupleHash) {
    // SAFETY: a plain helper. The compiler cannot tell what it reads, so all that was written before is in memory then.
    let other = unsafe { bpf_get_prandom_u32() };
    if let Some(epoch) = FLOW_EPOCHS.get_ptr_mut(hash.epoch()) {
        // SAFETY: as above.
        unsafe { epoch.write_volatile(other) };
    }
}
