//! The assembly that drivers print, line by line.

use super::assembly::{Class, Line};

/// Whose assembly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// AMD's, of RADV.
    Radv,
    /// NVIDIA's, of NVK.
    Nvk,
    /// Intel's, of ANV.
    Anv,
    /// Qualcomm's, of Turnip.
    Turnip,
}

impl Dialect {
    /// By what a driver calls the representation.
    pub(super) fn of(representation: &str) -> Option<Self> {
        match representation {
            "Assembly" => Some(Self::Radv),
            "NAK assembly" => Some(Self::Nvk),
            "GEN Assembly" => Some(Self::Anv),
            "IR3 Assembly" => Some(Self::Turnip),
            _ => None,
        }
    }

    pub(super) fn read(self, line: &str) -> Line<'_> {
        match self {
            Self::Radv => radv(line),
            Self::Nvk => nvk(line),
            Self::Anv => anv(line),
            Self::Turnip => turnip(line),
        }
    }
}

fn one<'a>(class: Class) -> Line<'a> {
    Line::Work(vec![(class, 1)])
}

/// `v_fmac_f32_e32 v1, v2, v3 ; 560a0702`; dual issue is `v_dual_mul_f32 v0, v1, v2 :: v_dual_mov_b32 v3, v4`.
fn radv(line: &str) -> Line<'_> {
    let code = line.split(';').next().unwrap_or_default().trim();
    if let Some(label) = code.strip_suffix(':') {
        return Line::Label(label);
    }
    let mut words = code.split_whitespace();
    let Some(op) = words.next() else { return Line::Nothing };
    match op {
        "s_branch" => Line::Jump(words.collect(), false),
        "s_endpgm" | "s_setpc_b64" => Line::Jump(Vec::new(), false),
        _ if op.starts_with("s_cbranch") => Line::Jump(words.collect(), true),
        "s_delay_alu" | "s_nop" | "s_clause" | "s_barrier" => Line::Nothing,
        _ if op.starts_with("s_wait") => Line::Nothing,
        _ if op.starts_with("s_") => one(Class::Scalar),
        _ => {
            Line::Work(code.split(" :: ").filter_map(|part| radv_vector(part.trim())).map(|class| (class, 1)).collect())
        }
    }
}

fn radv_vector(code: &str) -> Option<Class> {
    let op = code.split_whitespace().next()?.trim_start_matches("v_dual_").trim_start_matches("v_");
    let starts = |all: &[&str]| all.iter().any(|start| op.starts_with(start));
    Some(if op.contains("fma") || starts(&["mad_f", "mac_f"]) {
        Class::Fma
    } else if starts(&["wmma", "swmmac", "mfma"]) {
        Class::Matrix
    } else if starts(&["ds_load", "ds_store", "ds_read", "ds_write"]) {
        Class::Shared
    } else if starts(&["buffer_", "global_", "flat_", "scratch_"]) {
        Class::Memory
    } else if starts(&["mov", "cndmask", "cvt", "read", "write", "perm", "ds_"]) {
        Class::Other
    } else if op.split('_').any(|part| part.starts_with(['u', 'i', 'b']) && part[1..].parse::<u32>().is_ok()) {
        Class::Integer
    } else {
        Class::Other
    })
}

/// `r16 = ffma.ftz r68 r64 r48 // delay=4`, in blocks `block.u 12 L14 [9, 11] -> {` to `} -> [13]`.
fn nvk(line: &str) -> Line<'_> {
    let code = line.split("//").next().unwrap_or_default().trim();
    if code.starts_with("block") {
        return code.split_whitespace().nth(1).map_or(Line::Nothing, Line::Label);
    }
    if let Some((_, targets)) = code.split_once("} -> [") {
        return Line::Jump(targets.trim_end_matches(']').split(", ").collect(), false);
    }
    let (written, code) = code.split_once(" = ").unwrap_or(("", code));
    let Some(op) = code.split_whitespace().find(|word| !word.starts_with('@')) else { return Line::Nothing };
    let starts = |all: &[&str]| all.iter().any(|start| op.starts_with(start));
    if starts(&["nop", "bra", "bar", "bssy", "bsync", "bclear", "break", "exit", "membar", "warpsync"]) {
        Line::Nothing
    } else if written.split_whitespace().any(|register| register.starts_with("ur") || register.starts_with("up")) {
        one(Class::Scalar)
    } else if starts(&["ffma", "hfma", "dfma"]) {
        one(Class::Fma)
    } else if starts(&["hmma", "imma"]) {
        one(Class::Matrix)
    } else if starts(&["ld.shared", "st.shared", "ldsm"]) {
        one(Class::Shared)
    } else if starts(&["ld", "st."]) {
        one(Class::Memory)
    } else if starts(&["iadd", "imad", "imnmx", "isetp", "imul", "lea", "lop", "shf", "shl", "shr"]) {
        one(Class::Integer)
    } else {
        one(Class::Other)
    }
}

/// `(W) add (8) r47:d r47:d -1:d {Compacted}`: a type without letters is an unsigned integer.
fn anv(line: &str) -> Line<'_> {
    let code = line.split("//").next().unwrap_or_default().trim();
    if let Some(label) = code.strip_suffix(':') {
        return Line::Label(label);
    }
    let predicate = code.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    let (predicate, code) = predicate.map_or(("", code), |(predicate, code)| (predicate, code.trim()));
    let mut words = code.split_whitespace();
    let Some(op) = words.next() else { return Line::Nothing };
    let starts = |all: &[&str]| all.iter().any(|start| op.starts_with(start));
    if starts(&["while", "break", "if", "else", "cont", "goto", "join", "jmpi"]) {
        return Line::Jump(words.filter_map(anv_label).collect(), true);
    }
    let float = [":f", ":hf", ":df"].iter().any(|suffix| code.split_whitespace().any(|word| word.ends_with(suffix)));
    let selects = op == "sel" && !predicate.trim_start_matches('W').is_empty();
    if starts(&["sync", "nop", "endif", "halt", "send.gtwy", "send.ts"]) {
        Line::Nothing
    } else if starts(&["send.slm", "sends.slm"]) {
        one(Class::Shared)
    } else if op.starts_with("send") {
        one(Class::Memory)
    } else if words.next() == Some("(1)") {
        one(Class::Scalar)
    } else if op.starts_with("dpas") {
        one(Class::Matrix)
    } else if starts(&["mad", "mac"]) && float {
        one(Class::Fma)
    } else if float || selects || starts(&["mov", "math", "csel"]) {
        one(Class::Other)
    } else {
        one(Class::Integer)
    }
}

/// `jip:L13`, `L11`
fn anv_label(word: &str) -> Option<&str> {
    let label = word.rsplit(':').next()?;
    let digits = label.strip_prefix('L')?;
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(label)
}

/// `(ss)(rpt1)mad.f32 r12.y, (r)r16.w, r44.y, (r)(last)r12.y`: repeated once more, for the next registers.
fn turnip(line: &str) -> Line<'_> {
    let mut code = line.trim();
    let mut count = 1;
    while let Some((flag, rest)) = code.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
        count += flag.strip_prefix("rpt").and_then(|times| times.parse().ok()).unwrap_or(0);
        code = rest.trim_start();
    }
    // What is above and below the code begins otherwise.
    if !code.starts_with(|first: char| first.is_ascii_lowercase()) {
        return Line::Nothing;
    }
    if let Some(label) = code.strip_suffix(':') {
        return Line::Label(label);
    }
    let op = code.split_whitespace().next().unwrap_or_default();
    let targets: Vec<&str> = code.split('#').skip(1).filter(|target| target.starts_with('l')).collect();
    let starts = |all: &[&str]| all.iter().any(|start| op.starts_with(start));
    match op {
        "end" => return Line::Jump(Vec::new(), false),
        "jump" => return Line::Jump(targets, false),
        _ if !targets.is_empty() => return Line::Jump(targets, true),
        _ => {}
    }
    let class = if starts(&["nop", "pred", "bar", "fence", "sleep", "alias"]) {
        return Line::Nothing;
    } else if starts(&["ldl", "stl"]) {
        Class::Shared
    } else if starts(&["isam", "ld", "st", "resinfo"]) {
        Class::Memory
    } else if turnip_scalar(code) {
        Class::Scalar
    } else if op.starts_with("mad.f") {
        Class::Fma
    } else if starts(&["mov", "cov", "sel", "swz", "shfl", "quad"]) {
        Class::Other
    } else if op.split('.').nth(1).is_some_and(|kind| kind.starts_with(['u', 's', 'b', 'm'])) {
        Class::Integer
    } else {
        Class::Other
    };
    Line::Work(vec![(class, count)])
}

/// Whether what is written is shared by the subgroup: predicates `up0`, registers from 48 on.
fn turnip_scalar(code: &str) -> bool {
    let written = code.split_whitespace().nth(1).unwrap_or_default();
    let register = written.trim_start_matches(['h', 'r']).split('.').next().unwrap_or_default();
    written.starts_with("up") || register.parse::<u32>().is_ok_and(|register| register >= 48)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(dialect: Dialect, lines: &[(&str, Line<'_>)]) {
        for (line, expected) in lines {
            assert_eq!(&dialect.read(line), expected, "{line}");
        }
    }

    #[test]
    fn radv() {
        check(
            Dialect::Radv,
            &[
                ("BB13:", Line::Label("BB13")),
                ("\ts_cbranch_scc1 BB19    ; bfa200dd", Line::Jump(vec!["BB19"], true)),
                ("\ts_branch BB5", Line::Jump(vec!["BB5"], false)),
                ("\ts_waitcnt lgkmcnt(0)", Line::Nothing),
                ("\ts_add_u32 s12, s12, s4", one(Class::Scalar)),
                ("\tv_wmma_f32_16x16x16_f16 v[0:7], v[8:15], v[16:23], v[0:7]", one(Class::Matrix)),
                ("\tv_lshl_add_u32 v0, s6, 6, v0", one(Class::Integer)),
                ("\tv_cmpx_gt_u32_e32 v1, v2", one(Class::Integer)),
                ("\tv_cndmask_b32_e64 v0, v1, v2, vcc", one(Class::Other)),
                ("\tv_exp_f32_e32 v0, v1", one(Class::Other)),
                ("\tbuffer_load_b128 v[0:3], v4, s[0:3], 0 offen", one(Class::Memory)),
                ("\tds_bpermute_b32 v0, v1, v2", one(Class::Other)),
            ],
        );
    }

    #[test]
    fn nvk() {
        check(
            Dialect::Nvk,
            &[
                ("block.u 12 L14 [9, 11] -> {", Line::Label("12")),
                ("} -> [106, 107]", Line::Jump(vec!["106", "107"], false)),
                ("@!p0              bra pT L74   // delay=1", Line::Nothing),
                ("      r0..4     = hmma.m16n8k16.f32 r4..8 r8..10 r0..4", one(Class::Matrix)),
                ("      r18       = imnmx.u32 r15 0x11f pT   // delay=1", one(Class::Integer)),
                ("      up0       = isetp.ge.u32 ur14 ur17", one(Class::Scalar)),
                ("      r67       = ld.global.a64.constant.b32 [r23+ur14..16], p0", one(Class::Memory)),
                ("    st.shared.strong.cta.b128 [r18.x16+rZ+0x2200] r64..68", one(Class::Shared)),
                ("      r15       = mov 0x11", one(Class::Other)),
            ],
        );
    }

    #[test]
    fn anv() {
        check(
            Dialect::Anv,
            &[
                ("L11:", Line::Label("L11")),
                ("(f0.0)  break (8)     jip:L12   uip:L12", Line::Jump(vec!["L12", "L12"], true)),
                ("        while (8)     L7", Line::Jump(vec!["L7"], true)),
                ("        endif (8)     L2", Line::Nothing),
                ("(W)     sync.nop (1)  null      {$14.dst}", Line::Nothing),
                ("        mad (8)  r36:f  r60:f  r1:f  r23<1>:f {$13.dst}", one(Class::Fma)),
                ("        dpas.8x8 (8) r36:f r60:f r1:hf r23:hf", one(Class::Matrix)),
                ("        send.slm (8)  r1  r112 null:0 0x00000000 {$13}  // wr:1+0, rd:4", one(Class::Shared)),
                ("        sel (8)  (lt)f0.0  r34  r33  0x0000011f", one(Class::Integer)),
                ("(f0.0)  sel (8)  r34  r33  r35", one(Class::Other)),
                ("(W)     fbl (1)  r125  r3<0>", one(Class::Scalar)),
                ("        add (8)  r1:f  r2:f  r3:f", one(Class::Other)),
                ("        shl (8)  r113:d  r33:d  0x00000004", one(Class::Integer)),
            ],
        );
    }

    #[test]
    fn turnip() {
        check(
            Dialect::Turnip,
            &[
                ("l1133:", Line::Label("l1133")),
                ("(ss)br !p0.y, #l380", Line::Jump(vec!["l380"], true)),
                ("jump #l795", Line::Jump(vec!["l795"], false)),
                ("(rpt3)nop", Line::Nothing),
                ("@const(c20.x)\t0x00000001", Line::Nothing),
                ("; CL: outputs:", Line::Nothing),
                ("(ss)(rpt1)mad.f32 r12.y, (r)r16.w, r44.y, (r)(last)r12.y", Line::Work(vec![(Class::Fma, 2)])),
                ("(nop1) add.u r46.x, c20.w, (last)r46.x", one(Class::Integer)),
                ("add.u r52.z, r52.z, 4", one(Class::Scalar)),
                ("cmps.s.eq up0.y, r52.w, 0", one(Class::Scalar)),
                ("ldl.u32 r44.y, l[r43.y], 4", one(Class::Shared)),
                ("isam.v.base0 (u32)(xyzw)r3.y, r1.y+12, s#0, t#8", one(Class::Memory)),
                ("mul.f r46.z, r11.y, r44.y", one(Class::Other)),
                ("sel.b32 r1.z, r49.z, r49.z, c20.x", one(Class::Other)),
            ],
        );
    }
}
