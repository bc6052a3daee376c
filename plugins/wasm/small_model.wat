;; A guest that needs no toolchain: it denies every model whose name starts with gpt-4.
;;
;; sark_mw puts the request's document (JSON, see docs/policies.md) where `alloc` says, and `evaluate` returns where the answer's
;; JSON lies: its place in the upper 32 bits, its length in the lower. Each request gets a fresh instance.
(module
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 1024))
  ;; A text inside of a JSON text has its quotes escaped, so these bytes can only be a field.
  (data (i32.const 0) "\22model\22:\22gpt-4")
  (data (i32.const 64) "{\22allow\22:true}")
  (data (i32.const 128) "{\22allow\22:false,\22reason\22:\22use the small model\22}")

  (func (export "alloc") (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $free))
    (global.set $free (i32.add (global.get $free) (local.get $size)))
    (block $fits
      (br_if $fits (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
      (drop (memory.grow (i32.add (i32.div_u (local.get $size) (i32.const 65536)) (i32.const 1)))))
    (local.get $at))

  ;; Whether the 14 bytes at 0 stand at $at too.
  (func $stands (param $at i32) (result i32)
    (local $i i32)
    (loop $next
      (if (i32.ne (i32.load8_u (local.get $i)) (i32.load8_u (i32.add (local.get $at) (local.get $i))))
        (then (return (i32.const 0))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $i) (i32.const 14))))
    (i32.const 1))

  (func (export "evaluate") (param $at i32) (param $size i32) (result i64)
    (local $end i32)
    (if (i32.ge_u (local.get $size) (i32.const 14))
      (then
        (local.set $end (i32.sub (i32.add (local.get $at) (local.get $size)) (i32.const 14)))
        (loop $next
          (if (call $stands (local.get $at))
            (then (return (i64.or (i64.shl (i64.const 128) (i64.const 32)) (i64.const 46)))))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br_if $next (i32.le_u (local.get $at) (local.get $end))))))
    (i64.or (i64.shl (i64.const 64) (i64.const 32)) (i64.const 14))))
