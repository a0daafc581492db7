package slot

import "github.com/godbus/dbus/v5"

// Exports for the tests.
var (
	Classify = classify
	Age      = age
	ReadBack = readBack
)

// Malformed hands the decoders what no RAUC would say.
func Malformed(v any) {
	variant := dbus.MakeVariant(v)
	row := row{"x", map[string]dbus.Variant{}}
	for _, key := range []string{
		"class", "parent", "bootname", "type", "device", "bundle.version", "bundle.hash", "installed.transaction",
		"sha256", "installed.count", "activated.count", "size", "boot-status", "state",
	} {
		row.Values[key] = variant
	}
	decode(row)
	for _, name := range []string{iface + ".Completed", props + ".PropertiesChanged"} {
		for _, body := range [][]any{nil, {v}, {v, v}, {iface, map[string]dbus.Variant{"Progress": variant, "Operation": variant}}} {
			_, _ = read(&dbus.Signal{Name: name, Body: body})
		}
	}
}
