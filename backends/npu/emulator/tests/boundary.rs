//! The plugin's functions, called as a careless or hostile host would: stale handles, null pointers, small structures.
//! Everything is answered with a status.

use halite_hal::plugin::{
    self, ABI_MAJOR, Argument, BuiltinDesc, Completion, Counter, DeviceInfo, Error, Host, Operand, Plugin,
    Range, Status,
};
use halite_npu_emulator::halite_plugin_entry;
use std::ffi::{CStr, c_char};
use std::ptr;

/// Room for an error's text.
struct Report {
    text: [c_char; 256],
    raw: Error,
}

impl Report {
    fn new() -> Box<Self> {
        Box::new(Self { text: [0; 256], raw: Error::sized() })
    }

    fn pass(&mut self) -> *mut Error {
        self.raw.text = self.text.as_mut_ptr();
        self.raw.text_capacity = self.text.len() as u64;
        &raw mut self.raw
    }

    fn text(&self) -> String {
        plugin::fixed_text(&self.text)
    }
}

fn host(abi_major: u32) -> Host {
    Host { struct_size: size_of::<Host>() as u64, abi_major, abi_minor: 0, log: None }
}

fn table() -> Plugin {
    let (mut out, mut report) = (ptr::null(), Report::new());
    // SAFETY: the host structure and the places for results are locals that outlive the call.
    let status = unsafe { halite_plugin_entry(&host(ABI_MAJOR), &mut out, report.pass()) };
    assert_eq!((status, out.is_null()), (plugin::STATUS_OK, false));
    // SAFETY: not null (checked above), and the interface makes it a table of this version.
    unsafe { *out }
}

/// Calls a function of the table that the emulator has, with one more argument for the error.
macro_rules! call {
    ($table:expr, $report:expr, $function:ident($($argument:expr),*)) => {{
        let function = $table.$function.expect("the emulator has every function");
        // SAFETY: pointers lead to locals that outlive the call, or are null, which the emulator has to answer.
        let status: Status = unsafe { function($($argument,)* $report.pass()) };
        status
    }};
}

fn open(table: &Plugin) -> u64 {
    let (mut device, mut report) = (0, Report::new());
    let status = call!(table, report, device_open(0, 0, ptr::null(), &mut device));
    assert_eq!(status, plugin::STATUS_OK, "{}", report.text());
    device
}

fn close(table: &Plugin, device: u64) {
    let function = table.device_close.expect("the emulator has every function");
    // SAFETY: the handle was opened, and nothing of it is left.
    unsafe { function(device) };
}

#[test]
fn another_major_version_and_a_host_without_version_are_refused() {
    let (mut out, mut report) = (ptr::null(), Report::new());
    // SAFETY: as in `table`.
    let status = unsafe { halite_plugin_entry(&host(ABI_MAJOR + 1), &mut out, report.pass()) };
    assert_eq!(status, plugin::STATUS_ABI_MISMATCH);
    assert!(report.text().contains("1.1") && report.text().contains("2.0"), "{}", report.text());
    // SAFETY: as in `table`; null is the point of the test.
    let status = unsafe { halite_plugin_entry(ptr::null(), &mut out, report.pass()) };
    assert_eq!(status, plugin::STATUS_INVALID_ARGUMENT);
    // SAFETY: as above.
    let status = unsafe { halite_plugin_entry(&host(ABI_MAJOR), ptr::null_mut(), ptr::null_mut()) };
    assert_eq!(status, plugin::STATUS_INVALID_ARGUMENT);
}

#[test]
fn handles_that_are_stale_foreign_or_zero_are_invalid_arguments() {
    let table = table();
    let device = open(&table);
    let mut report = Report::new();
    let (mut stream, mut event) = (0, 0);
    assert_eq!(call!(table, report, stream_create(device, &mut stream)), plugin::STATUS_OK);
    assert_eq!(call!(table, report, event_create(device, &mut event)), plugin::STATUS_OK);
    for wrong in [0, u64::MAX, stream, event] {
        assert_eq!(call!(table, report, stream_create(wrong, &mut 0)), plugin::STATUS_INVALID_ARGUMENT);
        assert!(report.text().contains("no device"), "{}", report.text());
    }
    for wrong in [0, device, event] {
        assert_eq!(call!(table, report, event_record(wrong, event)), plugin::STATUS_INVALID_ARGUMENT);
        assert_eq!(
            call!(table, report, kernel_launch(stream, wrong, 1, 0, ptr::null())),
            plugin::STATUS_INVALID_ARGUMENT
        );
    }
    let (free, destroy) = (table.memory_free.unwrap(), table.event_destroy.unwrap());
    // SAFETY: giving back what never was, or twice, has to be harmless.
    unsafe {
        free(device, 12345);
        destroy(event);
        destroy(event);
        table.stream_destroy.unwrap()(stream);
    }
    assert_eq!(call!(table, report, stream_reset(stream)), plugin::STATUS_INVALID_ARGUMENT);
    close(&table, device);
    close(&table, device);
    assert_eq!(call!(table, report, device_health(device)), plugin::STATUS_INVALID_ARGUMENT);
}

#[test]
fn ranges_beyond_their_memory_are_refused_before_anything_runs() {
    let table = table();
    let device = open(&table);
    let mut report = Report::new();
    let (mut stream, mut memory, mut pointer) = (0, 0, ptr::null_mut());
    assert_eq!(call!(table, report, stream_create(device, &mut stream)), plugin::STATUS_OK);
    let kind = plugin::MEMORY_DEVICE;
    assert_eq!(
        call!(table, report, memory_alloc(device, kind, 64, &mut memory, &mut pointer)),
        plugin::STATUS_OK
    );
    let mut bytes = [0u8; 128];
    let data = bytes.as_mut_ptr();
    let results = [
        call!(table, report, stream_write(stream, memory, 1, data.cast(), 64)),
        call!(table, report, stream_read(stream, data.cast(), memory, u64::MAX, 2)),
        call!(table, report, stream_copy(stream, memory, 0, memory + 1, 0, 8)),
        call!(table, report, stream_fill(stream, memory, 0, 128, data, 1)),
        call!(table, report, stream_fill(stream, memory, 0, 10, data, 4)),
        call!(table, report, stream_fill(stream, memory, 0, 9, data, 3)),
        call!(table, report, stream_fill(stream, memory, 0, 8, ptr::null(), 4)),
        call!(table, report, stream_write(stream, memory, 0, ptr::null(), 8)),
        call!(table, report, memory_alloc(device, kind, 0, &mut 0, &mut pointer)),
        call!(table, report, memory_alloc(device, kind, 8, ptr::null_mut(), &mut pointer)),
    ];
    assert_eq!(results, [plugin::STATUS_INVALID_ARGUMENT; 10]);
    let mut completion = Completion::sized();
    let status = call!(table, report, stream_synchronize(stream, plugin::NO_TIMEOUT, &mut completion));
    assert_eq!((status, completion.state), (plugin::STATUS_OK, plugin::COMPLETION_DONE));
}

#[test]
fn built_ins_that_make_no_sense_are_refused() {
    let table = table();
    let device = open(&table);
    let mut report = Report::new();
    let (shape, strides) = ([4u64], [1i64]);
    let mut operand = Operand::sized();
    operand.dtype = 11;
    operand.rank = 1;
    operand.shape = shape.as_ptr();
    operand.strides = strides.as_ptr();
    let mut validate = |name: &CStr, operand: &Operand, count: u32| {
        let operands = [ptr::from_ref(operand); 4];
        let mut desc = BuiltinDesc::sized();
        desc.name = name.as_ptr();
        desc.operand_count = count;
        desc.operands = operands.as_ptr();
        call!(table, report, builtin_validate(device, &desc))
    };
    assert_eq!(validate(c"add", &operand, 3), plugin::STATUS_OK);
    assert_eq!(validate(c"add", &operand, 2), plugin::STATUS_INVALID_ARGUMENT);
    assert_eq!(validate(c"fill", &operand, 1), plugin::STATUS_INVALID_ARGUMENT);
    assert_eq!(validate(c"matmul", &operand, 3), plugin::STATUS_INVALID_ARGUMENT);
    assert_eq!(validate(c"softmax", &operand, 1), plugin::STATUS_UNSUPPORTED);
    assert_eq!(validate(c"\xff", &operand, 1), plugin::STATUS_INVALID_ARGUMENT);
    let unknown = Operand { dtype: 77, ..operand };
    assert_eq!(validate(c"copy", &unknown, 2), plugin::STATUS_UNSUPPORTED);
    let without_shape = Operand { shape: ptr::null(), ..operand };
    assert_eq!(validate(c"copy", &without_shape, 2), plugin::STATUS_INVALID_ARGUMENT);

    let mut builtin = 0;
    let operands = [ptr::from_ref(&operand)];
    let attribute = plugin::Attribute { key: c"value_bits".as_ptr(), ..plugin::Attribute::sized() };
    let attributes = [ptr::from_ref(&attribute)];
    let mut desc = BuiltinDesc::sized();
    desc.name = c"fill".as_ptr();
    desc.operand_count = 1;
    desc.operands = operands.as_ptr();
    desc.attribute_count = 1;
    desc.attributes = attributes.as_ptr();
    let mut report = Report::new();
    assert_eq!(call!(table, report, builtin_prepare(device, &desc, &mut builtin, &mut 0)), plugin::STATUS_OK);
    let mut stream = 0;
    assert_eq!(call!(table, report, stream_create(device, &mut stream)), plugin::STATUS_OK);
    let short = Range { length: 15, ..Range::sized() };
    let ranges = [ptr::from_ref(&short)];
    for count in [0, 1] {
        let status = call!(table, report, builtin_enqueue(stream, builtin, count, ranges.as_ptr()));
        assert_eq!(status, plugin::STATUS_INVALID_ARGUMENT);
    }
}

#[test]
fn results_are_written_into_the_room_that_an_older_host_has() {
    let table = table();
    let mut report = Report::new();
    let mut info = DeviceInfo::sized();
    // A host whose structure ends behind the name.
    info.struct_size = 8 + 128;
    assert_eq!(call!(table, report, device_info(0, 0, ptr::null(), &mut info)), plugin::STATUS_OK);
    assert!(plugin::fixed_text(&info.name).starts_with("Halite NPU emulator"));
    assert_eq!((info.struct_size, info.memory_bytes, info.dtype_mask), (136, 0, 0));
    assert_eq!(
        call!(table, report, device_info(1, 0, ptr::null(), &mut info)),
        plugin::STATUS_INVALID_ARGUMENT
    );

    let device = open(&table);
    let mut counters = [Counter::sized(); 2];
    let pointers = counters.each_mut().map(ptr::from_mut);
    let mut count = 0;
    assert_eq!(
        call!(table, report, device_counters(device, 2, pointers.as_ptr(), &mut count)),
        plugin::STATUS_OK
    );
    assert!(count > 2);
    assert_eq!(plugin::fixed_text(&counters[0].key), "commands");
}

#[test]
fn texts_are_cut_to_the_room_of_the_caller_and_end_with_zero() {
    let table = table();
    let mut report = Report::new();
    report.text.fill(1);
    let error = report.pass();
    // SAFETY: `error` leads to `report`, which lives on.
    unsafe { (*error).text_capacity = 8 };
    let function = table.device_health.unwrap();
    // SAFETY: as in `call!`.
    let status = unsafe { function(0, error) };
    assert_eq!(status, plugin::STATUS_INVALID_ARGUMENT);
    assert_eq!(plugin::fixed_text(&report.text).len(), 7);
    assert_eq!((report.text[7], report.text[8]), (0, 1));
    // SAFETY: as in `call!`; an error of null or of no size has to be left alone.
    unsafe {
        assert_eq!(function(0, ptr::null_mut()), plugin::STATUS_INVALID_ARGUMENT);
        report.raw.struct_size = 0;
        assert_eq!(function(0, &raw mut report.raw), plugin::STATUS_INVALID_ARGUMENT);
    }
}

#[test]
fn damaged_programs_and_wrong_arguments_are_refused() {
    use halite_npu_isa::{Access, ArgType, CoreKind, KernelBuilder, Program};
    let table = table();
    let device = open(&table);
    let mut report = Report::new();
    let mut kernel = KernelBuilder::new("nothing", CoreKind::Vector);
    kernel.buffer(Access::Read);
    kernel.scalar(ArgType::F32);
    let bytes = Program::new(vec![kernel.finish().unwrap()]).unwrap().to_bytes();
    let (mut program, mut handle, mut stream) = (0, 0, 0);
    for cut in [0, 1, 63, 64, bytes.len() - 1] {
        let status =
            call!(table, report, program_load(device, bytes.as_ptr().cast(), cut as u64, &mut program));
        assert_eq!(status, plugin::STATUS_BAD_FORMAT, "{cut}");
    }
    let len = bytes.len() as u64;
    assert_eq!(
        call!(table, report, program_load(device, bytes.as_ptr().cast(), len, &mut program)),
        plugin::STATUS_OK
    );
    let status = call!(table, report, kernel_find(program, c"something".as_ptr(), &mut handle));
    assert_eq!((status, report.text().contains("nothing")), (plugin::STATUS_UNAVAILABLE, true));
    assert_eq!(
        call!(table, report, kernel_find(program, c"nothing".as_ptr(), &mut handle)),
        plugin::STATUS_OK
    );
    assert_eq!(call!(table, report, stream_create(device, &mut stream)), plugin::STATUS_OK);
    let buffer = Argument::sized();
    let scalar = Argument { kind: plugin::ARGUMENT_SCALAR, dtype: 11, ..Argument::sized() };
    let integer = Argument { dtype: 6, ..scalar };
    let outside = Argument { memory: 7, length: 4, ..buffer };
    let mut launch = |blocks, arguments: &[&Argument]| {
        let pointers: Vec<_> = arguments.iter().map(|argument| ptr::from_ref(*argument)).collect();
        let count = pointers.len() as u32;
        call!(table, report, kernel_launch(stream, handle, blocks, count, pointers.as_ptr()))
    };
    assert_eq!(launch(1, &[&buffer, &scalar]), plugin::STATUS_OK);
    for arguments in [&[&buffer][..], &[&scalar, &buffer], &[&buffer, &integer], &[&outside, &scalar]] {
        assert_eq!(launch(1, arguments), plugin::STATUS_INVALID_ARGUMENT);
    }
    assert_eq!(launch(0, &[&buffer, &scalar]), plugin::STATUS_INVALID_ARGUMENT);
}
