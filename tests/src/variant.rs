//! Agents that embed other kernel programs than the one that was built: upgrades without a second compilation.
//!
//! The programs are changed in a copy of the agent, instruction by instruction: everything else about it is the same.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use proxy_agent::datapath::OBJECT;

use crate::{
    agent,
    sandbox::{FILES, Sandbox},
};

/// Bytes of an instruction.
const INSTRUCTION: usize = 8;
/// `exit`.
const EXIT: [u8; INSTRUCTION] = [0x95, 0, 0, 0, 0, 0, 0, 0];
/// Jumps if two registers are, or are not, equal: of 64 bits, and of 32.
const COMPARISONS: [u8; 4] = [0x1d, 0x5d, 0x1e, 0x5e];

/// How a variant's programs differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// They do the same by other instructions.
    Rewritten,
    /// The kernel refuses this one: it ends at once, returns what it has never set, and what follows is out of reach.
    Refused(&'static str),
}

impl Variant {
    /// The program, for [`Agent::run_from`](crate::agent::Agent::run_from).
    ///
    /// # Errors
    ///
    /// If there is no agent, or its programs are not as expected.
    pub fn build(self) -> Result<PathBuf> {
        let name = match self {
            Self::Rewritten => "sluice-rewritten".to_owned(),
            Self::Refused(program) => format!("sluice-without-{program}"),
        };
        let inside = Path::new(FILES).join(name);
        let path = Sandbox::shared()?.view(&inside);
        let mut binary = fs::read(agent::binary()?).context("read the agent")?;
        let changed = self.change(OBJECT)?;
        let mut found = 0;
        let mut at = 0;
        // The linker aligns what is embedded.
        while let Some(bytes) = binary.get_mut(at..at + OBJECT.len()) {
            if bytes == OBJECT {
                bytes.copy_from_slice(&changed);
                found += 1;
            }
            at += INSTRUCTION;
        }
        ensure!(found == 1, "the agent embeds these kernel programs {found} times: is it up to date?");
        // Under another name first: tests that run at the same time may want the same one.
        let partial = path.with_extension(format!("{:?}", std::thread::current().id()));
        fs::write(&partial, binary)?;
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o755))?;
        fs::rename(&partial, &path)?;
        Ok(inside)
    }

    /// The object with its programs changed.
    fn change(self, object: &[u8]) -> Result<Vec<u8>> {
        let mut changed = object.to_vec();
        let file = object::File::parse(object).context("the object")?;
        let mut instructions = 0;
        for symbol in file.symbols().filter(|symbol| symbol.size() > 0) {
            let Some(section) = symbol.section_index().filter(|_| symbol.kind() == object::SymbolKind::Text)
            else {
                continue;
            };
            let (base, _) =
                file.section_by_index(section)?.file_range().context("a section with contents")?;
            let start = usize::try_from(base + symbol.address())?;
            let code = changed
                .get_mut(start..start + usize::try_from(symbol.size())?)
                .context("a function in the object")?;
            match self {
                Self::Refused(program) if symbol.name() == Ok(program) => {
                    code.first_chunk_mut().map(|first| *first = EXIT).context("an instruction")?;
                    instructions += 1;
                }
                Self::Refused(_) => {}
                Self::Rewritten => instructions += turn_comparisons(code),
            }
        }
        ensure!(instructions > 0, "{self:?}: nothing to change");
        Ok(changed)
    }
}

/// Exchanges what is compared in all comparisons of two registers. Returns how many there are.
fn turn_comparisons(code: &mut [u8]) -> usize {
    let mut count = 0;
    let mut rest = code.chunks_exact_mut(INSTRUCTION);
    while let Some(instruction) = rest.next() {
        // The second half of a wide instruction is none.
        if instruction[0] == 0x18 {
            rest.next();
        } else if COMPARISONS.contains(&instruction[0]) {
            instruction[1] = instruction[1].rotate_left(4);
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_are_turned_and_nothing_else_is() {
        // r1 = 0x1d (wide); if r3 != r2 goto +5; if r3 != 2 goto +5
        let mut code = [
            [0x18, 0x01, 0, 0, 0x1d, 0, 0, 0],
            [0x1d, 0x12, 0, 0, 0, 0, 0, 0],
            [0x5e, 0x23, 5, 0, 0, 0, 0, 0],
            [0x56, 0x03, 5, 0, 2, 0, 0, 0],
        ];
        let before = code;
        assert_eq!(turn_comparisons(code.as_flattened_mut()), 1);
        assert_eq!(code[2], [0x5e, 0x32, 5, 0, 0, 0, 0, 0]);
        code[2] = before[2];
        assert_eq!(code, before);
    }
}
