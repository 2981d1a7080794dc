//! BPF machine code: as much of it as is needed to know what a function costs.

/// The bytes of a kernel stack that one chain of calls may use (`MAX_BPF_STACK`).
pub(crate) const STACK_LIMIT: u32 = 512;

/// A slot of eight bytes, the unit in which the kernel counts. 64-bit constants take two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    operation: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    /// Splits the little-endian code of a function.
    pub(crate) fn decode(code: &[u8]) -> Vec<Self> {
        let (slots, _) = code.as_chunks::<8>();
        slots
            .iter()
            .map(|slot| Self {
                operation: slot[0],
                destination: slot[1] & 0x0f,
                source: slot[1] >> 4,
                offset: i16::from_le_bytes([slot[2], slot[3]]),
                immediate: i32::from_le_bytes([slot[4], slot[5], slot[6], slot[7]]),
            })
            .collect()
    }

    /// Where a call to another BPF function goes, in slots after this one.
    pub(crate) fn call(self) -> Option<i64> {
        (self.operation == CALL && self.source == PSEUDO_CALL).then_some(i64::from(self.immediate) + 1)
    }

    /// The constant, which before relocation is an offset into the section it refers to.
    pub(crate) fn immediate(self) -> i64 {
        self.immediate.into()
    }

    /// Whether this loads a 64-bit constant, such as the address of a callback.
    pub(crate) fn loads_address(self) -> bool {
        self.operation == LOAD_CONSTANT
    }

    /// Whether this jumps to itself for ever, as a panic handler does.
    pub(crate) fn hangs(self) -> bool {
        (self.operation == JUMP && self.offset == -1) || (self.operation == JUMP_LONG && self.immediate == -1)
    }

    fn class(self) -> u8 {
        self.operation & 0x07
    }
}

/// How far below its frame pointer a function reaches.
///
/// Follows the frame pointer through copies and constant additions in the order of the code, which is how LLVM forms
/// addresses of variables. The kernel's verifier knows exactly; this needs no kernel.
pub(crate) fn stack_depth(code: &[Instruction]) -> u32 {
    let mut pointers: [Option<i64>; 16] = [None; 16];
    pointers[FRAME_POINTER] = Some(0);
    let mut deepest = 0;
    for instruction in code {
        let (destination, source) = (usize::from(instruction.destination), usize::from(instruction.source));
        let base = match instruction.class() {
            LOAD => pointers[source],
            STORE | STORE_CONSTANT => pointers[destination],
            _ => None,
        };
        if let Some(base) = base {
            deepest = deepest.min(base + i64::from(instruction.offset));
        }
        match (instruction.operation, instruction.class()) {
            (MOVE, _) if instruction.offset == 0 => pointers[destination] = pointers[source],
            (ADD_CONSTANT, _) => {
                let sum = pointers[destination].map(|base| base + i64::from(instruction.immediate));
                pointers[destination] = sum;
                deepest = deepest.min(sum.unwrap_or(0));
            }
            (CALL, _) => pointers[..=LAST_ARGUMENT].fill(None),
            // What comes after was jumped to, from where other registers held the pointers.
            (JUMP | JUMP_LONG | EXIT, _) => pointers[..FRAME_POINTER].fill(None),
            (_, STORE | STORE_CONSTANT | JUMPS | JUMPS_32) => {}
            _ => pointers[destination] = None,
        }
    }
    u32::try_from(-deepest).unwrap_or(u32::MAX)
}

/// What the kernel charges a call chain for a function's frame.
pub(crate) fn frame(depth: u32) -> u32 {
    // check_max_stack_depth rounds so; from Linux 6.9 on to 16 when there is a JIT, but nodes run older kernels too.
    depth.max(1).next_multiple_of(32)
}

const FRAME_POINTER: usize = 10;
/// The registers up to this one do not survive a call.
const LAST_ARGUMENT: usize = 5;

const STORE_CONSTANT: u8 = 0x02;
const LOAD: u8 = 0x01;
const STORE: u8 = 0x03;
const JUMPS: u8 = 0x05;
const JUMPS_32: u8 = 0x06;

const JUMP: u8 = 0x05;
const JUMP_LONG: u8 = 0x06;
const ADD_CONSTANT: u8 = 0x07;
const LOAD_CONSTANT: u8 = 0x18;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const MOVE: u8 = 0xbf;

/// In a call's source register: not a helper of the kernel, but a function of the program.
const PSEUDO_CALL: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_the_lowest_byte_stored_or_passed_on() {
        let code = [
            // *(u64 *)(r10 - 16) = r1
            [0x7b, 0x1a, 0xf0, 0xff, 0, 0, 0, 0],
            // r2 = r10; r2 += -40
            [0xbf, 0xa2, 0, 0, 0, 0, 0, 0],
            [0x07, 0x02, 0, 0, 0xd8, 0xff, 0xff, 0xff],
            // call helper 1; the r2 of afterwards is no stack pointer
            [0x85, 0, 0, 0, 1, 0, 0, 0],
            [0x07, 0x02, 0, 0, 0x00, 0xff, 0xff, 0xff],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(stack_depth(&Instruction::decode(&code.concat())), 40);
    }

    #[test]
    fn accesses_through_copies_of_the_frame_pointer_count() {
        let code = [
            // r6 = r10; r6 += -8; *(u32 *)(r6 - 24) = 0
            [0xbf, 0xa6, 0, 0, 0, 0, 0, 0],
            [0x07, 0x06, 0, 0, 0xf8, 0xff, 0xff, 0xff],
            [0x62, 0x06, 0xe8, 0xff, 0, 0, 0, 0],
        ];
        assert_eq!(stack_depth(&Instruction::decode(&code.concat())), 32);
    }

    #[test]
    fn frames_are_rounded_as_the_verifier_does() {
        assert_eq!([0, 1, 32, 33].map(frame), [32, 32, 32, 64]);
    }

    #[test]
    fn endless_jump_hangs_and_a_loop_does_not() {
        let code = [[0x05, 0, 0xff, 0xff, 0, 0, 0, 0], [0x05, 0, 0xfe, 0xff, 0, 0, 0, 0]].concat();
        let hangs: Vec<bool> = Instruction::decode(&code).into_iter().map(Instruction::hangs).collect();
        assert_eq!(hangs, [true, false]);
    }
}
