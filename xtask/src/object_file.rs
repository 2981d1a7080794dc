//! The ELF objects of the kernel programs: their functions and who calls whom.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SectionKind, Symbol, SymbolKind,
};

use crate::bytecode::{Instruction, frame, stack_depth};

/// An object with its functions.
pub(crate) struct ObjectFile {
    /// The contents of the `license` section.
    pub(crate) license: Vec<u8>,
    /// The names of what the object wants from elsewhere, which no kernel provides.
    pub(crate) undefined: Vec<String>,
    functions: BTreeMap<Place, Function>,
}

/// What the kernel gets when it loads a program: the function and all it may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) instructions: u32,
    /// Of the deepest chain of calls, frames rounded up as the kernel does.
    pub(crate) stack: u32,
}

/// The index of a section, and an offset into it.
type Place = (usize, u64);

struct Function {
    name: String,
    role: Role,
    code: Vec<Instruction>,
    callees: BTreeSet<Place>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Attached to a hook; the section says which kind.
    Program,
    /// Called by programs.
    Subprogram,
}

impl ObjectFile {
    /// Reads an object.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let file = object::File::parse(bytes).context("not an ELF object")?;
        let license = match file.section_by_name("license") {
            Some(section) => section.data()?.to_vec(),
            None => Vec::new(),
        };
        let undefined = file.symbols().filter(|symbol| symbol.is_undefined());
        let undefined = undefined.filter_map(|symbol| Some(symbol.name().ok()?.to_owned()));
        let undefined = undefined.filter(|name| !name.is_empty()).collect();
        let mut functions = BTreeMap::new();
        for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
            let section = symbol.section_index().context("a function without a section")?;
            functions.insert((section.0, symbol.address()), Function::read(&file, &symbol, section)?);
        }
        for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
            add_calls(&file, &section, &mut functions)?;
        }
        Ok(Self { license, undefined, functions })
    }

    /// Each program and what it costs, by name.
    pub(crate) fn costs(&self) -> Result<BTreeMap<String, Cost>> {
        let programs = self.functions.iter().filter(|(_, function)| function.role == Role::Program);
        programs.map(|(place, function)| Ok((function.name.clone(), self.cost(*place)?))).collect()
    }

    /// The functions that panic, each with what calls it: by name, or by the endless loop that is all that is left of a
    /// handler once it is inlined.
    pub(crate) fn panics(&self) -> Vec<(&str, Vec<&str>)> {
        let panics = |function: &Function| {
            function.name.contains("panic") || function.code.iter().any(|instruction| instruction.hangs())
        };
        let panicking = self.functions.iter().filter(|(_, function)| panics(function));
        panicking.map(|(place, function)| (function.name.as_str(), self.callers(*place))).collect()
    }

    fn callers(&self, place: Place) -> Vec<&str> {
        let callers = self.functions.values().filter(|function| function.callees.contains(&place));
        callers.map(|function| function.name.as_str()).collect()
    }

    fn cost(&self, program: Place) -> Result<Cost> {
        let mut reached = BTreeSet::new();
        let stack = self.chain(program, &mut Vec::new(), &mut reached)?;
        let slots =
            reached.iter().filter_map(|place| self.functions.get(place)).map(|function| function.code.len());
        Ok(Cost { instructions: u32::try_from(slots.sum::<usize>())?, stack })
    }

    /// The stack of the deepest chain from a function on.
    fn chain(&self, place: Place, callers: &mut Vec<Place>, reached: &mut BTreeSet<Place>) -> Result<u32> {
        let function = self.functions.get(&place).context("a call into nowhere")?;
        ensure!(!callers.contains(&place), "{} calls itself", function.name);
        reached.insert(place);
        callers.push(place);
        let mut below = 0;
        for callee in &function.callees {
            below = below.max(self.chain(*callee, callers, reached)?);
        }
        callers.pop();
        Ok(frame(stack_depth(&function.code)) + below)
    }
}

impl Function {
    fn read(file: &object::File<'_>, symbol: &Symbol<'_, '_>, index: SectionIndex) -> Result<Self> {
        let name = symbol.name().context("a function without a readable name")?.to_owned();
        let section = file.section_by_index(index)?;
        let code = section
            .data_range(symbol.address(), symbol.size())?
            .with_context(|| format!("{name} lies outside its section"))?;
        // Loaders go by the section, whatever the symbol's binding; `.text.unlikely` holds what LLVM thinks is cold.
        let role = if section.name()?.starts_with(".text") { Role::Subprogram } else { Role::Program };
        Ok(Self { name, role, code: Instruction::decode(code), callees: BTreeSet::new() })
    }
}

/// Fills in who calls whom in a section: calls within it carry their distance, others a relocation.
fn add_calls(
    file: &object::File<'_>,
    section: &object::Section<'_, '_>,
    functions: &mut BTreeMap<Place, Function>,
) -> Result<()> {
    let relocations: BTreeMap<u64, Place> = section
        .relocations()
        .filter_map(|(address, relocation)| {
            let RelocationTarget::Symbol(index) = relocation.target() else { return None };
            let symbol = file.symbol_by_index(index).ok()?;
            let target = symbol.section_index()?;
            let is_code = file.section_by_index(target).ok()?.kind() == SectionKind::Text;
            is_code.then_some((address, (target.0, symbol.address())))
        })
        .collect();
    for (&(_, start), function) in functions.iter_mut().filter(|((index, _), _)| *index == section.index().0)
    {
        for (at, instruction) in (start..).step_by(8).zip(&function.code) {
            let callee = match (relocations.get(&at), instruction.call()) {
                (Some((target, base)), Some(slots)) => Some((*target, base.checked_add_signed(slots * 8))),
                (Some((target, base)), None) if instruction.loads_address() => {
                    Some((*target, base.checked_add_signed(instruction.immediate())))
                }
                (None, Some(slots)) => Some((section.index().0, at.checked_add_signed(slots * 8))),
                _ => None,
            };
            if let Some((target, address)) = callee {
                function.callees.insert((target, address.context("a call into nowhere")?));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_counts_each_function_once_and_the_deepest_chain() {
        let object = object([
            ("ingress", Role::Program, 10, &[1, 2]),
            ("open", Role::Subprogram, 20, &[2]),
            ("copy", Role::Subprogram, 5, &[]),
            ("clock", Role::Program, 2, &[]),
        ]);
        let costs = object.costs().unwrap();
        assert_eq!(costs["ingress"], Cost { instructions: 35, stack: 96 });
        assert_eq!(costs["clock"], Cost { instructions: 2, stack: 32 });
        assert_eq!(costs.len(), 2);
    }

    #[test]
    fn recursion_is_an_error() {
        let object = object([("ingress", Role::Program, 1, &[1]), ("again", Role::Subprogram, 1, &[1])]);
        assert_eq!(object.costs().unwrap_err().to_string(), "again calls itself");
    }

    #[test]
    fn panics_are_told_with_their_callers() {
        let object = object([("ingress", Role::Program, 1, &[1]), ("panic_fmt", Role::Subprogram, 1, &[])]);
        assert_eq!(object.panics(), [("panic_fmt", vec!["ingress"])]);
    }

    /// Functions at the places 0, 1, ... of one section.
    fn object<const N: usize>(functions: [(&str, Role, usize, &[u64]); N]) -> ObjectFile {
        let functions = functions.map(|(name, role, slots, callees)| Function {
            name: name.to_owned(),
            role,
            code: Instruction::decode(&vec![0; slots * 8]),
            callees: callees.iter().map(|callee| (0, *callee)).collect(),
        });
        let functions = (0..).map(|address| (0, address)).zip(functions).collect();
        ObjectFile { license: vec![], undefined: vec![], functions }
    }
}
