//! From assembly to what its hot loop consists of.

use serde::Serialize;

use super::dialects::Dialect;

/// What an instruction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// A fused multiply-add of floats.
    Fma,
    /// A multiplication of matrices.
    Matrix,
    /// A load from or a store to workgroup memory.
    Shared,
    /// The same of other memory.
    Memory,
    /// Integer arithmetic of each lane: addresses, bounds, counters.
    Integer,
    /// Other arithmetic, moves, shuffles.
    Other,
    /// Once a subgroup instead of once a lane, whatever it does.
    Scalar,
}

/// A line of assembly, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A place to jump to.
    Label(&'a str),
    /// A jump, and whether the next line may follow it too. It counts as no instruction.
    Jump(Vec<&'a str>, bool),
    /// Instructions: two where they are issued as one, or one with how often it is repeated.
    Work(Vec<(Class, u32)>),
    /// Waits, hints, comments.
    Nothing,
}

/// Instructions by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(super) struct Mix {
    pub(super) fma: u32,
    pub(super) matrix: u32,
    pub(super) shared: u32,
    pub(super) memory: u32,
    pub(super) integer: u32,
    pub(super) other: u32,
    pub(super) scalar: u32,
}

impl Mix {
    /// Instructions that every lane takes part in.
    pub(super) fn vector(&self) -> u32 {
        self.fma + self.matrix + self.shared + self.memory + self.integer + self.other
    }

    pub(super) fn instructions(&self) -> u32 {
        self.vector() + self.scalar
    }

    /// Integer and scalar instructions: where addresses come from, whichever unit a compiler gives them to.
    pub(super) fn address(&self) -> u32 {
        self.integer + self.scalar
    }

    fn add(&mut self, class: Class, count: u32) {
        *match class {
            Class::Fma => &mut self.fma,
            Class::Matrix => &mut self.matrix,
            Class::Shared => &mut self.shared,
            Class::Memory => &mut self.memory,
            Class::Integer => &mut self.integer,
            Class::Other => &mut self.other,
            Class::Scalar => &mut self.scalar,
        } += count;
    }
}

/// Of the loops that have no loop inside, the one that multiplies most, the largest of these; none without loops. (A kernel often has
/// two loops of like size: by size alone a few moves more would make the other one the hot loop.)
pub(super) fn hot_loop(dialect: Dialect, text: &str) -> Option<Mix> {
    let blocks = blocks(text.lines().map(|line| dialect.read(line)));
    let loops = loops(&blocks);
    let innermost = loops.iter().filter(|(head, body)| !loops.iter().any(|(other, _)| other != head && body[*other]));
    let mixed = innermost.map(|(_, body)| {
        let mut mix = Mix::default();
        let inside = blocks.iter().zip(body).filter_map(|(block, &inside)| inside.then_some(&block.work));
        inside.flatten().for_each(|&(class, count)| mix.add(class, count));
        mix
    });
    mixed.max_by_key(|mix| (mix.fma + mix.matrix, mix.instructions()))
}

/// Instructions without a jump between them, and the blocks that may follow.
#[derive(Debug, Default)]
struct Block {
    work: Vec<(Class, u32)>,
    next: Vec<usize>,
}

fn blocks<'a>(lines: impl Iterator<Item = Line<'a>>) -> Vec<Block> {
    let mut blocks = vec![Block::default()];
    let mut labels = Vec::new();
    let mut jumps = Vec::new();
    // Whether the next line may follow the last one.
    let mut falls = true;
    let open = |blocks: &mut Vec<Block>, falls: bool| {
        let new = blocks.len();
        if falls {
            blocks[new - 1].next.push(new);
        }
        blocks.push(Block::default());
    };
    for line in lines {
        match line {
            Line::Label(label) => {
                open(&mut blocks, falls);
                labels.push((label, blocks.len() - 1));
                falls = true;
            }
            Line::Jump(targets, falls_through) => {
                jumps.extend(targets.into_iter().map(|target| (blocks.len() - 1, target)));
                open(&mut blocks, falls_through);
                // The new block is entered by falling through, or not at all before its label.
                falls = falls_through;
            }
            Line::Work(work) => blocks.last_mut().expect("one from the start").work.extend(work),
            Line::Nothing => {}
        }
    }
    for (from, target) in jumps {
        blocks[from].next.extend(labels.iter().find(|(label, _)| *label == target).map(|&(_, block)| block));
    }
    blocks
}

/// The natural loops: the block that each starts at, and which blocks belong to it.
fn loops(blocks: &[Block]) -> Vec<(usize, Vec<bool>)> {
    let mut before = vec![Vec::new(); blocks.len()];
    for (from, block) in blocks.iter().enumerate() {
        block.next.iter().for_each(|&to| before[to].push(from));
    }
    let mut loops: Vec<(usize, Vec<bool>)> = Vec::new();
    for (from, head) in back_edges(blocks) {
        let index = loops.iter().position(|(other, _)| *other == head).unwrap_or_else(|| {
            let mut body = vec![false; blocks.len()];
            body[head] = true;
            loops.push((head, body));
            loops.len() - 1
        });
        // What reaches the jump back without passing the head.
        let body = &mut loops[index].1;
        let mut stack = vec![from];
        while let Some(block) = stack.pop() {
            if !std::mem::replace(&mut body[block], true) {
                stack.extend(&before[block]);
            }
        }
    }
    loops
}

/// The edges that lead back to a block on the way to them.
fn back_edges(blocks: &[Block]) -> Vec<(usize, usize)> {
    let (mut seen, mut on_path) = (vec![false; blocks.len()], vec![false; blocks.len()]);
    let mut edges = Vec::new();
    let mut path = vec![(0, 0)];
    (seen[0], on_path[0]) = (true, true);
    while let Some((block, step)) = path.last_mut() {
        let from = *block;
        let Some(&to) = blocks[from].next.get(*step) else {
            on_path[from] = false;
            path.pop();
            continue;
        };
        *step += 1;
        if on_path[to] {
            edges.push((from, to));
        } else if !std::mem::replace(&mut seen[to], true) {
            on_path[to] = true;
            path.push((to, 0));
        }
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop rotated as RADV does, with a smaller one beside it, both inside a third.
    const RADV: &str = "\
BB0:
	s_load_b128 s[8:11], s[0:1], 0x40 ; f4080200 f8000040
BB1:
	v_add_nc_u32_e32 v1, 1, v1
	s_branch BB3
BB2:
	s_delay_alu instid0(VALU_DEP_1)
	v_fmac_f32_e32 v1, v2, v3 ; 56
	v_dual_mul_f32 v0, v1, v2 :: v_dual_fmac_f32 v3, v4, v5
	ds_load_b128 v[1:4], v5
	v_min_u32_e32 v5, 0x11f, v5
BB3:
	s_cmp_lt_u32 s1, s2
	s_cbranch_scc1 BB2
BB4:
	v_add_f32_e32 v1, v1, v1
	s_cbranch_scc0 BB4
	s_cbranch_scc0 BB1
	v_fma_f32 v1, v1, v1, v1
	s_endpgm
";

    #[test]
    fn the_hot_loop_multiplies_most_and_has_no_loop_inside() {
        let mix = hot_loop(Dialect::Radv, RADV).unwrap();
        assert_eq!(mix, Mix { fma: 2, shared: 1, integer: 1, other: 1, scalar: 1, ..Mix::default() });
        assert_eq!((mix.vector(), mix.instructions(), mix.address()), (5, 6, 2));
    }

    #[test]
    fn loops_are_found_where_a_compiler_moved_them() {
        // The body of block 1's loop lies behind the code that follows it.
        let text = "\
block 0 L0 [] -> {
      r0        = mov 0x1
} -> [1]
block 1 L1 [0, 3] -> {
      p0        = isetp.lt.u32 r0 r1
                  bra !p0 L3
} -> [2, 3]
block 2 L2 [1] -> {
      r9        = ffma.ftz r1 r2 r3
      r9        = ffma.ftz r1 r2 r3
                  exit
} -> []
block 3 L3 [1] -> {
      r1        = ffma.ftz r1 r2 r3
      r4..8     = ld.shared.strong.cta.b128 [r15.x16+rZ], pT
      ur1       = iadd3 ur1 0x1 rZ
                  bra pT L1
} -> [1]
";
        let mix = hot_loop(Dialect::Nvk, text).unwrap();
        assert_eq!(mix, Mix { fma: 1, shared: 1, integer: 1, scalar: 1, ..Mix::default() });
    }

    #[test]
    fn without_a_loop_there_is_none() {
        assert_eq!(hot_loop(Dialect::Radv, "BB0:\n\tv_fma_f32 v1, v1, v1, v1\n\ts_endpgm\n"), None);
        assert_eq!(hot_loop(Dialect::Turnip, ""), None);
    }
}
