// The gradient of the log decays g of a chunk of tokens 1..b, from the state S before it and the gradient R of the state after it, for
// drivers that run on a CPU. lightning_decay_tile.wgsl says what is summed, and why.
//
// A subgroup has a chunk of a head, ROWS x LANES tokens at a time: row r of a lane is token r * LANES + lane of these. All products are
// of these rows with LANES other ones, a lane each, passed around by broadcast: rows of S and R, then earlier tokens in order. A row keeps
// the sum of its pairs with the tokens before the current one, which all rows from the current one on add up to what crosses it.

var<workgroup> sh_gradient: array<f32, CHUNK>;   // [token]: lanes look at tokens of their own only, here and below
var<workgroup> sh_read: array<f32, CHUNK>;
var<workgroup> sh_kept: array<f32, CHUNK>;

// What stands left and right of a state: of S the queries and the gradients of the output, of R the keys and values.
fn left_0(row: u32, chunk: u32) -> vec4<f32> {
    return load_q(row, chunk);
}

fn right_0(row: u32, chunk: u32) -> vec4<f32> {
    return load_out(row, chunk);
}

fn left_1(row: u32, chunk: u32) -> vec4<f32> {
    return load_k(row, chunk);
}

fn right_1(row: u32, chunk: u32) -> vec4<f32> {
    return load_v(row, chunk);
}

// The sum of this lane's number and those of later lanes.
fn sum_from(x: f32, lane: u32) -> f32 {
    var sum = x;
    //$ for d in 0..LANES_LOG2
    sum += select(0.0, subgroupShuffle(sum, min(lane + (1u << $du), LANES - 1u)), lane + (1u << $du) < LANES);
    //$ end
    return sum;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let item = item_at(workgroup, grid);
    if (!item.live) {
        return;
    }
    let s = segment_at(item.segment);
    let head = item.head;
    let live = s.tokens;   // at most CHUNK; what lies past them repeats the last one
    begin_decay(head);
    chunk_decay(s, head, lane, live);
    // The gradient R is item s.state, the state S item s.state0.
    let from_0 = Segment(s.batch, s.origin, s.tokens, s.keys, s.state0, s.state0);
    let from_1 = s;
    let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
    let k_base = aux.params.k.offset + s.batch * aux.params.k.batch + head * aux.params.k.head;
    let v_base = aux.params.v.offset + s.batch * aux.params.v.batch + head * aux.params.v.head;
    let out_base = aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head;
    for (var at = lane; at < CHUNK; at += LANES) {
        sh_gradient[at] = 0.0;
        sh_read[at] = 0.0;
        sh_kept[at] = 0.0;
    }

    var meeting = 0.0;   // this lane's share of <R, S>
    for (var u0 = 0u; u0 < live; u0 += ROWS * LANES) {
        //$ for r in 0..ROWS
        let u_$r = u0 + $ru * LANES + lane;
        let token_$r = token_at(s, min(u_$r, live - 1u));
        let left_row_0_$r = q_base + token_$r * aux.params.q.seq;
        let left_row_1_$r = k_base + token_$r * aux.params.k.seq;
        let right_row_0_$r = out_base + token_$r * aux.params.out.seq;
        let right_row_1_$r = v_base + token_$r * aux.params.v.seq;
        //$ end

        //$ for p in 0..2
        //$ for r in 0..ROWS
        var z_$p_$r = 0.0;
        //$ end
        for (var i0 = 0u; i0 < aux.params.head_dim; i0 += LANES) {
            //$ for r in 0..ROWS
            //$ for n in 0..LANES
            var x_$r_$n = 0.0;
            //$ end
            //$ end
            for (var c = 0u; c < aux.params.value_chunks; c++) {
                let y = load_state(from_$p, head, i0 + lane, c);
                if (($pu == 1u) & (u0 == 0u)) {
                    meeting += dot(y, load_state(from_0, head, i0 + lane, c));
                }
                //$ for r in 0..ROWS
                let x_$r = right_$p(right_row_$p_$r, c);
                //$ end
                //$ for n in 0..LANES
                {
                    let b = subgroupBroadcast(y, $nu);
                    //$ for r in 0..ROWS
                    x_$r_$n += dot(x_$r, b);
                    //$ end
                }
                //$ end
            }
            //$ for n in 0..LANES step 4
            {
                let chunk = i0 / 4u + $nu / 4u;
                //$ for r in 0..ROWS
                {
                    // What lies past the key dim may be anything.
                    let l = select(vec4<f32>(), left_$p(left_row_$p_$r, chunk), chunk < aux.params.head_chunks);
                    z_$p_$r += l.x * x_$r_$n + l.y * x_$r_${n+1} + l.z * x_$r_${n+2} + l.w * x_$r_${n+3};
                }
                //$ end
            }
            //$ end
        }
        //$ end
        //$ for r in 0..ROWS
        if (u_$r < live) {
            sh_read[u_$r] = z_0_$r * aux.params.score_scale * exp(decay_from_start(u_$r));
            sh_kept[u_$r] = z_1_$r * exp(decay_to_end(u_$r, live));
        }
        //$ end

        //$ for r in 0..ROWS
        let place_$r = place_at(u_$r);
        var open_$r = 0.0;
        //$ end
        for (var t0 = 0u; t0 < min(live, u0 + ROWS * LANES); t0 += LANES) {
            let earlier = token_at(s, min(t0 + lane, live - 1u));
            //$ for p in 0..2
            //$ for r in 0..ROWS
            //$ for n in 0..LANES
            var s_$p_$r_$n = 0.0;
            //$ end
            //$ end
            //$ end
            let k_row = k_base + earlier * aux.params.k.seq;
            for (var c = 0u; c < aux.params.head_chunks; c++) {
                let y = load_k(k_row, c);
                //$ for r in 0..ROWS
                let x_$r = load_q(left_row_0_$r, c);
                //$ end
                //$ for n in 0..LANES
                {
                    let b = subgroupBroadcast(y, $nu);
                    //$ for r in 0..ROWS
                    s_0_$r_$n += dot(x_$r, b);
                    //$ end
                }
                //$ end
            }
            let v_row = v_base + earlier * aux.params.v.seq;
            for (var c = 0u; c < aux.params.value_chunks; c++) {
                let y = load_v(v_row, c);
                //$ for r in 0..ROWS
                let x_$r = load_out(right_row_0_$r, c);
                //$ end
                //$ for n in 0..LANES
                {
                    let b = subgroupBroadcast(y, $nu);
                    //$ for r in 0..ROWS
                    s_1_$r_$n += dot(x_$r, b);
                    //$ end
                }
                //$ end
            }
            var crossing = 0.0;
            //$ for n in 0..LANES
            {
                let t = t0 + $nu;
                var around = 0.0;
                //$ for r in 0..ROWS
                around += select(0.0, open_$r, t <= u_$r);
                //$ end
                crossing = select(crossing, subgroupAdd(around), lane == $nu);
                let place = place_at(t);
                //$ for r in 0..ROWS
                let pair_$r = s_0_$r_$n * s_1_$r_$n * aux.params.score_scale * exp(decay_between(place, place_$r));
                open_$r += select(0.0, pair_$r, (t < u_$r) & (u_$r < live));
                //$ end
            }
            //$ end
            sh_gradient[t0 + lane] += crossing;
        }
    }

    var after = subgroupAdd(meeting) * exp(decay_total(live));
    for (var end = CHUNK; end > 0u; end -= LANES) {
        let at = end - LANES + lane;
        let read = sum_from(sh_read[at], lane);
        sh_gradient[at] += after + read;
        after += subgroupBroadcast(read, 0u);
    }
    var before = 0.0;
    var sum = 0.0;
    for (var t0 = 0u; t0 < CHUNK; t0 += LANES) {
        let kept = sh_kept[t0 + lane];
        let gradient = sh_gradient[t0 + lane] + before + subgroupExclusiveAdd(kept);
        before += subgroupAdd(kept);
        if (t0 + lane < live) {
            sum += gradient;
            //$ if GATED
            dg[aux.params.state0.offset + s.batch * aux.params.state0.item + head * aux.params.state0.head
                + token_at(s, t0 + lane) * aux.params.state0.row] = gradient;
            //$ end
        }
    }
    //$ if SUM
    let total = subgroupAdd(sum);
    if (lane == 0u) {
        state[aux.params.totals + s.state0 * aux.params.heads + head - aux.params.head_first] = total;
    }
    //$ end
}
