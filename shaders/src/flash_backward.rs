//! The kernels of the backward pass of softmax attention: their keys, and what each is made of.

use std::fmt;

use crate::compose::{Binding, Element, Output, elements, file, key_sharing, matrix_types, params};
use crate::key::{Access, Kernel, ScoreOptions, Shape, Storage};
use crate::score::score_parts;

/// What a kernel of the backward pass does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackwardOp {
    /// One record a query: its log-sum-exp and its delta.
    Delta {
        /// Whether a gradient of the log-sum-exp comes in.
        incoming: bool,
    },
    /// The gradient of q.
    Dq {
        /// Whether records get parts of the gradient of the ALiBi slope.
        slopes: bool,
    },
    /// The gradients of k and v together, of kernels with rows in registers.
    DkDv,
    /// The gradient of k.
    Dk,
    /// The gradient of v.
    Dv,
    /// The gradient of the bias.
    Dbias,
    /// The gradients of the sinks, from the records.
    Dsinks,
    /// The gradients of the ALiBi slopes, from the records.
    Dslopes,
}

/// What a compiled pipeline of the backward pass depends on; its [`Display`](fmt::Display) is the pipeline's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlashBackwardKey {
    /// What it does.
    pub op: BackwardOp,
    /// The kernel design, of `Dq`, `DkDv`, `Dk` and `Dv`; the others have one.
    pub kernel: Kernel,
    /// Its layout; queries and keys are what is owned and what is walked.
    pub shape: Shape,
    /// Storage of q, of the output and of their gradients.
    pub q: Storage,
    /// Storage of k and v and of their gradients.
    pub kv: Storage,
    /// How rows are loaded and stored.
    pub access: Access,
    /// Upper bound of the head dim; 0 where the kernel loops over it.
    pub head_class: u32,
    /// Whether a dim is below its class, or not a multiple of what `matrix` takes of it at a time, so that what lies past it must be
    /// zeroed. (Tiles stop there.)
    pub padded: bool,
    /// Upper bound of the value dim; of a kernel that loops over dims, of the part of its result's dim that one workgroup handles.
    pub value_class: u32,
    /// Whether the gradient of the output lies beside the records: eight bindings hold no more, where there is a bias or a mask.
    pub beside: bool,
    /// The options that change the code; those of outputs are not among them.
    pub options: ScoreOptions,
}

/// Queries and keys of a workgroup of [`BackwardOp::Dbias`].
pub const DBIAS_TILE: u32 = 32;

/// What a walking kernel owns, what it walks, and what comes out.
struct Roles {
    own: &'static str,
    walked: &'static str,
    pair_own: &'static str,
    pair_walked: &'static str,
    summed: &'static str,
    result: &'static str,
    starts: [&'static str; 2],
}

impl FlashBackwardKey {
    pub(crate) fn owns_queries(&self) -> bool {
        matches!(self.op, BackwardOp::Dq { .. })
    }

    /// Whether gradients of scores are summed.
    pub(crate) fn gradient(&self) -> bool {
        matches!(self.op, BackwardOp::Dq { .. } | BackwardOp::DkDv | BackwardOp::Dk)
    }

    /// Whether weights are summed.
    pub(crate) fn values(&self) -> bool {
        matches!(self.op, BackwardOp::DkDv | BackwardOp::Dv)
    }

    /// Whether it walks keys or queries.
    pub(crate) fn walks(&self) -> bool {
        self.gradient() || self.values()
    }

    pub(crate) fn slopes(&self) -> bool {
        self.op == BackwardOp::Dq { slopes: true }
    }

    fn roles(&self) -> Roles {
        if self.owns_queries() {
            let (own, walked, pair_own, pair_walked) = ("q", "k", "grad_out", "v");
            let starts = ["s.q_start", "s.k_start"];
            return Roles { own, walked, pair_own, pair_walked, summed: "k", result: "dq", starts };
        }
        let (own, walked, pair_own, pair_walked) = ("k", "q", "v", "grad_out");
        let (summed, result) = if self.gradient() { ("q", "dk") } else { ("grad_out", "dv") };
        Roles { own, walked, pair_own, pair_walked, summed, result, starts: ["s.k_start", "s.q_start"] }
    }

    /// Whether a key or query that is walked may be hidden from all that is owned.
    pub(crate) fn hides_walked(&self) -> bool {
        self.options.masks_elements()
    }

    /// Where results are bound: two at most, in the slots that nothing else needs.
    fn results(&self) -> Vec<Output> {
        let names: &[_] = match self.op {
            BackwardOp::Dq { .. } => &["dq"],
            BackwardOp::DkDv => &["dk", "dv"],
            BackwardOp::Dk => &["dk"],
            BackwardOp::Dv => &["dv"],
            _ => &[],
        };
        let slots = if self.beside { [3, if self.options.bias { 6 } else { 5 }] } else { [5, 6] };
        let storage = if self.owns_queries() { self.q } else { self.kv };
        let output = |(&name, slot)| {
            let dim = if name == "dv" { "value" } else { "head" };
            Output { name, slot, storage, access: self.access, dim }
        };
        names.iter().zip(slots).map(output).collect()
    }

    /// The bindings, at most eight.
    pub(crate) fn bindings(&self) -> Vec<Binding> {
        let options = self.options;
        let walks = self.walks() || self.op == BackwardOp::Dbias;
        let mut all = match self.op {
            BackwardOp::Delta { incoming } => vec![(0, "out", false), (1, "grad_out", false), (2, "lse", false)]
                .into_iter()
                .chain(incoming.then_some((3, "grad_lse", false)))
                .collect(),
            BackwardOp::Dsinks => vec![(3, "dsinks", true)],
            BackwardOp::Dslopes => vec![(3, "dslopes", true)],
            BackwardOp::Dbias => vec![(2, "v", false), (3, "dbias", true)],
            _ => {
                let v = self.gradient().then_some((2, "v", false));
                let grad_out = (!self.beside).then_some((3, "grad_out", false));
                v.into_iter()
                    .chain(grad_out)
                    .chain(self.results().iter().map(|out| (out.slot, out.name, true)))
                    .collect()
            }
        };
        all.push((4, "rows", matches!(self.op, BackwardOp::Delta { .. }) || self.slopes()));
        all.push((7, "aux", false));
        for (used, slot, name) in
            [(walks, 0, "q"), (walks, 1, "k"), (walks && options.bias, 5, "bias"), (walks && options.mask, 6, "mask")]
        {
            if used {
                all.push((slot, name, false));
            }
        }
        all.sort_unstable();
        all.into_iter().map(|(slot, name, writes)| Binding { slot, name, writes }).collect()
    }

    pub(crate) fn parts(&self) -> Vec<String> {
        let mut parts = vec![file("view").to_owned(), params()];
        let lanes = self.walks() && matches!(self.shape, Shape::Lanes(_));
        let element =
            |name, slot, dim, storage| Element { name, slot, dim, storage, access: self.access, pairs: lanes };
        let (q, k, v) = (
            element("q", 0, "head_dim", self.q),
            element("k", 1, "head_dim", self.kv),
            element("v", 2, "value_dim", self.kv),
        );
        let rows = |written| file(if written { "rows_written" } else { "rows" }).to_owned();
        match self.op {
            BackwardOp::Delta { incoming } => {
                let tensors = [element("out", 0, "value_dim", self.q), element("grad_out", 1, "value_dim", self.q)];
                parts.extend(elements(&tensors, &[]));
                parts.push(rows(true));
                parts.extend(incoming.then(|| file("grad_lse").to_owned()));
                parts.push(file("flash_backward_delta").to_owned());
            }
            BackwardOp::Dsinks | BackwardOp::Dslopes => {
                parts.push(rows(false));
                if self.op == BackwardOp::Dsinks {
                    parts.push(file(if self.options.bias { "weight_natural" } else { "weight_log2" }).to_owned());
                }
                let sinks = self.op == BackwardOp::Dsinks;
                parts.push(file(if sinks { "share_sinks" } else { "share_slopes" }).to_owned());
                parts.push(file("flash_backward_sum").replace("$t", if sinks { "dsinks" } else { "dslopes" }));
            }
            BackwardOp::Dbias => {
                parts.extend(elements(&[q, k, v], &[]));
                parts.push(rows(false));
                parts.extend(["load_beside", "row_record"].map(|name| file(name).to_owned()));
                parts.extend(score_parts(self.options, false));
                parts.push(file("flash_backward_dbias").to_owned());
            }
            _ => {
                let tensors = [q, k, v];
                parts.push(file("item_tile").to_owned());
                parts.extend(elements(&tensors[..if self.gradient() { 3 } else { 2 }], &self.results()));
                parts.push(rows(self.slopes()));
                if self.beside {
                    parts.push(file("load_beside").to_owned());
                    if lanes {
                        parts.push(file("load_pair").replace("$t", "grad_out"));
                    }
                } else {
                    parts.extend(elements(&[element("grad_out", 3, "value_dim", self.q)], &[]));
                }
                parts.push(file("row_record").to_owned());
                parts.extend(score_parts(self.options, true));
                if let Shape::Matrix(shape) = self.shape {
                    parts.push(matrix_types(shape.side));
                }
                parts.extend(self.walk().into_iter().map(|name| self.fill(file(name))));
                parts.extend(self.slab_rows());
            }
        }
        parts
    }

    /// The files of a walk.
    fn walk(&self) -> Vec<&'static str> {
        let mut files = vec![if self.owns_queries() { "owned_queries" } else { "owned_keys" }];
        match (self.shape, self.kernel) {
            (Shape::Lanes(_), kernel) => {
                let seen = if kernel == Kernel::Broadcast { "seen_lane" } else { "seen_alone" };
                files.push(if self.hides_walked() { seen } else { "seen_lane_range" });
                files.push(if self.padded { "head_padded" } else { "head_whole" });
                files.push(if self.padded { "value_padded" } else { "value_whole" });
                files.push("flash_backward_rows");
            }
            (Shape::Tile(_), kernel) => {
                let subgroup = kernel == Kernel::TileSubgroup;
                files.push(if subgroup { "invocation_subgroup" } else { "invocation" });
                if self.slopes() {
                    files.push(if subgroup { "rows_subgroup" } else { "rows_workgroup" });
                }
                files.push(if self.hides_walked() { "seen_tile" } else { "seen_tile_range" });
                files.push("flash_backward_tile");
            }
            (Shape::Matrix(_), _) => {
                files.extend(["matrices", "invocation_subgroup", "rows_subgroup"]);
                files.push(if self.hides_walked() { "seen_tile" } else { "seen_tile_range" });
                files.push(if self.padded { "head_padded" } else { "head_whole" });
                files.push(if self.padded { "value_padded" } else { "value_whole" });
                files.push("flash_backward_matrix");
            }
        }
        files
    }

    /// How the rows of products reach the slab of `matrix`.
    fn slab_rows(&self) -> Vec<String> {
        let Shape::Matrix(_) = self.shape else { return Vec::new() };
        let tensors =
            [("q", "HEAD", "head"), ("k", "HEAD", "head"), ("v", "PAIR", "value"), ("grad_out", "PAIR", "value")];
        let staged = if self.gradient() { &tensors[..] } else { &tensors[..2] };
        let fill = |&(name, columns, dim): &(&str, &str, &str)| {
            file("slab_rows").replace("$t", name).replace("$D", columns).replace("$w", dim)
        };
        staged.iter().map(fill).collect()
    }

    /// The text of a walk with its roles filled in.
    fn fill(&self, text: &str) -> String {
        let roles = self.roles();
        let record = if self.kernel == Kernel::Broadcast { "subgroupBroadcast(query_0, $nu)" } else { "query_$n" };
        let [own_start, walked_start] = roles.starts;
        let named = [
            ("$PAIR_OWN", roles.pair_own),
            ("$PAIR_WALKED", roles.pair_walked),
            ("$OWN", roles.own),
            ("$WALKED", roles.walked),
            ("$SUMMED", roles.summed),
            ("$RESULT", roles.result),
            ("OWN_START", own_start),
            ("WALKED_START", walked_start),
            ("QUERY_RECORD", record),
        ];
        let text = named.into_iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value));
        key_sharing(self.kernel, &["a_$h_$g", "x_$h_$g"], &text)
    }
}

impl fmt::Display for FlashBackwardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.op {
            BackwardOp::Delta { .. } => "flash_backward_delta",
            BackwardOp::Dq { .. } => "flash_backward_dq",
            BackwardOp::DkDv => "flash_backward_dkdv",
            BackwardOp::Dk => "flash_backward_dk",
            BackwardOp::Dv => "flash_backward_dv",
            BackwardOp::Dbias => "flash_backward_dbias",
            BackwardOp::Dsinks => "flash_backward_dsinks",
            BackwardOp::Dslopes => "flash_backward_dslopes",
        })?;
        if self.walks() {
            write!(f, "/{}/{}", self.kernel, self.shape)?;
        }
        if !matches!(self.op, BackwardOp::Dsinks | BackwardOp::Dslopes) {
            write!(f, "/{}", self.q)?;
            if self.kv != self.q {
                write!(f, "-{}", self.kv)?;
            }
        }
        if self.walks() {
            if self.head_class > 0 {
                write!(f, "/d{}", self.head_class)?;
            }
            f.write_str(if self.padded { "-padded" } else { "" })?;
            write!(f, "/v{}", self.value_class)?;
        }
        f.write_str(match self.access {
            Access::Vec4 => "",
            Access::Vec8 => "/vec8",
            Access::Any => "/any",
        })?;
        let own = match self.op {
            BackwardOp::Delta { incoming: true } => Some("dlse"),
            BackwardOp::Dq { slopes: true } => Some("dslopes"),
            _ => None,
        };
        for name in self.beside.then_some("beside").into_iter().chain(self.options.names()).chain(own) {
            write!(f, "+{name}")?;
        }
        Ok(())
    }
}
