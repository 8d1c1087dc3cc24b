// The bandwidth that kernels reach, and what a dispatch costs that does nothing.

@group(0) @binding(0) var<storage, read> from_: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> to: array<vec4<f32>>;

@compute @workgroup_size(256)
fn copy(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let stride = grid.x * 256u;
    //$ for n in 0..4
    to[id.x + $nu * stride] = from_[id.x + $nu * stride];
    //$ end
}

@compute @workgroup_size(1)
fn nothing() {}
