// The work of flash_split and flash_merge, made where the lengths lie: how many keys each sequence has is read here and nowhere else.
//
// The host knows what does not depend on it: the most keys of each sequence, its queries, its row tiles. One workgroup writes, in the
// form in which the host would have sent them, the records of the sequences, the stretches of keys (tile by tile), the partial rows of
// each row, and the grid of flash_split.
struct LengthsParams {
    sequences: u32,
    tiles: u32,          // row tiles of all sequences
    tile_rows: u32,      // rows of a tile, at most
    rows: u32,           // rows of all sequences
    group: u32,          // query heads per key/value head
    lengths: u32,        // where the lengths begin in their binding
    templates: u32,      // word offsets in aux.words: of the sequences,
    row_tiles: u32,      // and of (sequence, tile, first row) of each row tile
    keys: u32,           // keys at whose multiples stretches end; 0: as many as make `busy` stretches,
    busy: u32,
    step: u32,           // in multiples of this
    most_keys: u32,      // keys of a stretch, at most
    share: u32,          // workgroups of a stretch
    workgroups_per_axis: u32,
    records: u32,        // word offsets in `work`: of the sequences,
    stretches: u32,      // of their stretches,
    list: u32,           // of the rows, and after them their parts,
    spans: u32,          // and of what this kernel notes for each tile
}

struct Aux {
    params: LengthsParams,
    words: array<u32>,
}

@group(0) @binding(0) var<storage, read> lengths: array<u32>;
@group(0) @binding(3) var<storage, read_write> work: array<u32>;
@group(0) @binding(7) var<storage, read> aux: Aux;

const RECORD: u32 = 9u;
const UNBOUNDED: i32 = 1 << 30;

// The keys that some row of a tile sees.
struct Span {
    first: u32,
    end: u32,
    rows: u32,
}

fn span_at(tile: u32) -> Span {
    let entry = aux.params.row_tiles + 3u * tile;
    let record = aux.params.records + RECORD * aux.words[entry];
    let first_row = aux.words[entry + 1u] * aux.params.tile_rows;
    let rows = min(aux.params.tile_rows, work[record + 2u] * aux.params.group - first_row);
    let first = i32(first_row / aux.params.group) + bitcast<i32>(work[record + 5u]);
    let end = i32((first_row + rows - 1u) / aux.params.group) + bitcast<i32>(work[record + 6u]);
    let last = u32(clamp(end, 0, i32(work[record + 4u])));
    return Span(min(u32(max(first, 0)), last), last, rows);
}

fn stretches_of(span: Span, keys: u32) -> u32 {
    return select(0u, (span.end - 1u) / keys - span.first / keys + 1u, span.first < span.end);
}

// What was noted for a tile: its stretches and its partial rows begin here.
fn stretches_before(tile: u32) -> u32 {
    return work[aux.params.spans + 2u * tile];
}

fn partials_before(tile: u32) -> u32 {
    return work[aux.params.spans + 2u * tile + 1u];
}

var<workgroup> counts: array<vec2<u32>, THREADS>;

// What all invocations counted together (x), and those before this one.
fn counted(thread: u32, count: vec2<u32>) -> array<vec2<u32>, 2> {
    counts[thread] = count;
    workgroupBarrier();
    var before = vec2<u32>();
    var all = vec2<u32>();
    for (var n = 0u; n < THREADS; n++) {
        before += select(vec2<u32>(), counts[n], n < thread);
        all += counts[n];
    }
    workgroupBarrier();
    return array<vec2<u32>, 2>(all, before);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) thread: u32) {
    for (var b = thread; b < aux.params.sequences; b += THREADS) {
        let given = aux.params.templates + RECORD * b;
        let to = aux.params.records + RECORD * b;
        let queries = aux.words[given + 2u];
        let keys = min(lengths[aux.params.lengths + b], aux.words[given + 4u]);
        let left = bitcast<i32>(aux.words[given + 5u]);
        let right = bitcast<i32>(aux.words[given + 6u]);
        let diagonal = i32(keys) - i32(queries);
        let lo = select(max(diagonal - left, -UNBOUNDED), -UNBOUNDED, left == UNBOUNDED);
        let side = select(diagonal + right, UNBOUNDED, right == UNBOUNDED);
        let hi = min(min(side, bitcast<i32>(aux.words[given + 7u])) + 1, UNBOUNDED);
        for (var n = 0u; n < 4u; n++) {
            work[to + n] = aux.words[given + n];
        }
        work[to + 4u] = select(0u, keys, lo < hi);
        work[to + 5u] = bitcast<u32>(lo);
        work[to + 6u] = bitcast<u32>(hi);
        work[to + 7u] = bitcast<u32>(diagonal);
        work[to + 8u] = keys;
    }
    storageBarrier();

    // Each invocation has neighbouring tiles, so that counts before it are counts of tiles before its own.
    let share = (aux.params.tiles + THREADS - 1u) / THREADS;
    let first_tile = min(thread * share, aux.params.tiles);
    let end_tile = min(first_tile + share, aux.params.tiles);
    var walked = 0u;
    for (var t = first_tile; t < end_tile; t++) {
        let span = span_at(t);
        walked += span.end - span.first;
    }
    let total = counted(thread, vec2<u32>(walked, 0u))[0].x;
    let even = ((total + aux.params.busy - 1u) / aux.params.busy + aux.params.step - 1u) / aux.params.step;
    let wanted = select(aux.params.keys, max(even, 1u) * aux.params.step, aux.params.keys == 0u);
    let keys = min(wanted, aux.params.most_keys);

    var count = vec2<u32>();
    for (var t = first_tile; t < end_tile; t++) {
        let span = span_at(t);
        let stretches = stretches_of(span, keys);
        count += vec2<u32>(stretches, stretches * span.rows);
    }
    let sums = counted(thread, count);
    var before = sums[1];
    for (var t = first_tile; t < end_tile; t++) {
        let span = span_at(t);
        let stretches = stretches_of(span, keys);
        work[aux.params.spans + 2u * t] = before.x;
        work[aux.params.spans + 2u * t + 1u] = before.y;
        let entry = aux.params.row_tiles + 3u * t;
        for (var r = 0u; r < span.rows; r++) {
            let row = aux.words[entry + 2u] + r;
            let to = aux.params.list + 4u * row;
            work[to] = aux.words[entry];
            work[to + 1u] = aux.words[entry + 1u] * aux.params.tile_rows + r;
            work[to + 2u] = 4u * aux.params.rows + before.y + r * stretches;
            work[to + 3u] = stretches;
        }
        before += vec2<u32>(stretches, stretches * span.rows);
    }
    let all = sums[0];
    if (thread == 0u) {
        let workgroups = all.x * aux.params.share;
        work[0] = workgroups;
        work[1] = min(workgroups, aux.params.workgroups_per_axis);
        work[2] = (workgroups + aux.params.workgroups_per_axis - 1u) / aux.params.workgroups_per_axis;
        work[3] = 1u;
    }
    storageBarrier();

    for (var n = thread; n < all.x; n += THREADS) {
        // The last tile that begins with this stretch or before: of tiles without any, the one that has it.
        var t = 0u;
        var beyond = aux.params.tiles;
        while (beyond - t > 1u) {
            let middle = (t + beyond) / 2u;
            if (stretches_before(middle) <= n) {
                t = middle;
            } else {
                beyond = middle;
            }
        }
        let span = span_at(t);
        let within = n - stretches_before(t);
        let multiple = span.first / keys + within;
        let partial = partials_before(t) + within * span.rows;
        let to = aux.params.stretches + 5u * n;
        let entry = aux.params.row_tiles + 3u * t;
        work[to] = aux.words[entry];
        work[to + 1u] = aux.words[entry + 1u];
        work[to + 2u] = max(multiple * keys, span.first);
        work[to + 3u] = min((multiple + 1u) * keys, span.end);
        work[to + 4u] = partial;
        let stretches = stretches_of(span, keys);
        for (var r = 0u; r < span.rows; r++) {
            work[aux.params.list + 4u * aux.params.rows + partials_before(t) + r * stretches + within] = partial + r;
        }
    }
}
