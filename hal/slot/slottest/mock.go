package slottest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"
	"github.com/godbus/dbus/v5/prop"
)

const (
	iface    = service + ".Installer"
	mockSize = 128 << 10 // of a range, as a kernel reads ahead
)

// Mock stands in for RAUC 1.13 or newer with streaming, which takes a kernel
// with NBD and dm-verity that not every machine has. It asks for ranges as RAUC
// does [RAUC 1.15, src/nbd.c]: "0-3" first, the headers with each, six times at
// most; to look at a bundle it reads the signature alone, with the manifest in
// it. What came is checked by the real rauc tool, signature and verity tree,
// before the slot is written.
type Mock struct {
	b     *Box
	conn  *dbus.Conn
	props *prop.Properties

	mu       sync.Mutex
	slots    map[string]map[string]dbus.Variant
	busy     bool
	requests int

	// Knows are the arguments that it takes; those of RAUC 1.14 at first.
	Knows []string
	// Inspected is called when a bundle was looked at; may be nil.
	Inspected func()
}

// Requests is how many ranges it got.
func (m *Mock) Requests() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.requests
}

// ServeMock has a Mock serve instead of RAUC, until Kill or Reboot.
func (b *Box) ServeMock() *Mock {
	b.t.Helper()
	b.Kill()
	m := &Mock{b: b, slots: b.states, Knows: []string{"http-headers", "transaction-id", "require-manifest-hash"}}
	var err error
	m.conn, err = dbus.Connect(b.Address)
	b.must(err)
	b.t.Cleanup(func() { _ = m.conn.Close() })
	b.must(m.conn.Export(m, "/", iface))
	value := func(v any) *prop.Prop { return &prop.Prop{Value: v, Emit: prop.EmitTrue} }
	type progress struct {
		Percent int32
		Text    string
		Depth   int32
	}
	m.props, err = prop.Export(m.conn, "/", prop.Map{iface: {
		"Operation": value("idle"), "LastError": value(""), "Progress": value(progress{}), "Compatible": value(Compatible),
		"BootSlot": value(b.Current()),
	}})
	b.must(err)
	node := &introspect.Node{Interfaces: []introspect.Interface{{Name: iface, Methods: introspect.Methods(m), Properties: m.props.Introspection(iface)}}}
	b.must(m.conn.Export(introspect.NewIntrospectable(node), "/", "org.freedesktop.DBus.Introspectable"))
	b.watch(func() <-chan struct{} {
		_, err := m.conn.RequestName(service, 0) // in a queue: who had it may not be gone yet
		b.must(err)
		return m.conn.Context().Done()
	})
	b.mock = m
	return m
}

// Root is a root folder of a machine that has NBD.
func (m *Mock) Root() string {
	m.b.must(os.MkdirAll(m.b.path("root/sys/module/nbd"), 0o700))
	return m.b.path("root")
}

// InstallBundle is the method of that name.
func (m *Mock) InstallBundle(source string, args map[string]dbus.Variant) *dbus.Error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy {
		return failed(errors.New("already processing a different method"))
	}
	for key := range args {
		if !slices.Contains(m.Knows, key) {
			return failed(says("Unsupported key: %s", key))
		}
	}
	m.busy = true
	m.props.SetMust(iface, "Operation", "installing")
	go func() {
		err := m.install(source, args)
		result := int32(0)
		if err != nil {
			result = 1
			m.props.SetMust(iface, "LastError", "Installation error: "+err.Error())
		}
		m.mu.Lock()
		m.busy = false
		m.mu.Unlock()
		m.props.SetMust(iface, "Operation", "idle") // told before it is so: RAUC has it the other way round, and ends first
		_ = m.conn.Emit("/", iface+".Completed", result)
	}()
	return nil
}

func failed(err error) *dbus.Error {
	return dbus.NewError("org.gtk.GDBus.UnmappedGError.Quark._g_2dio_2derror_2dquark.Code36", []any{err.Error()})
}

// words are an error in those of RAUC.
type words string

// Error implements error.
func (w words) Error() string { return string(w) }

func says(format string, args ...any) error { return words(fmt.Sprintf(format, args...)) }

func (m *Mock) install(source string, args map[string]dbus.Variant) error {
	path, headers := source, []string{}
	if h, ok := args["http-headers"].Value().([]string); ok {
		headers = h
	}
	if strings.Contains(source, "://") {
		path = m.b.path("streamed.raucb")
		if err := m.stream(source, headers, path); err != nil {
			return err
		}
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	// RAUC's own tool checks signature and payload.
	out := m.b.path("extracted")
	_ = os.RemoveAll(out)
	cmd := exec.CommandContext(m.b.t.Context(), raucCommand(), "--conf="+m.b.path("system.conf"), "extract", path, out)
	if text, err := cmd.CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		why := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(strings.ToLower(l), "failed") })
		return errors.New(strings.Join(lines[max(why, 0):], " ")) // before that it says what it does
	}
	hash := sum(m.b.manifest(path, whole, "verity"))
	if want, ok := args["require-manifest-hash"].Value().(string); ok && want != hash {
		return says("Refusing to install bundle with unexpected hash (expected %s, got %s)", want, hash)
	}
	manifest, err := os.ReadFile(filepath.Join(out, "manifest.raucm"))
	if err != nil {
		return err
	}
	if got := field(manifest, "compatible"); got != Compatible {
		return says("Compatible mismatch: Expected '%s' but bundle manifest has '%s'", Compatible, got)
	}
	image, err := os.ReadFile(filepath.Join(out, "rootfs.img"))
	if err != nil {
		return err
	}
	slot, boot := "rootfs.1", "B"
	if m.b.Current() == "B" {
		slot, boot = "rootfs.0", "A"
	}
	if out, err := exec.CommandContext(m.b.t.Context(), m.b.path("bootloader"), "set-state", boot, "bad").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if err := os.WriteFile(m.b.path(slot), image, 0o600); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.slots[slot]
	count, _ := v["installed.count"].Value().(uint32)
	for key, value := range map[string]any{
		"bundle.version": field(manifest, "version"), "bundle.hash": hash, "sha256": sum(image), "size": uint64(len(image)), "installed.count": count + 1,
	} {
		v[key] = dbus.MakeVariant(value)
	}
	return nil
}

func field(manifest []byte, key string) string {
	for line := range strings.Lines(string(manifest)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			return v
		}
	}
	return ""
}

// stream fetches a URL by ranges, the last one first: whoever serves must not
// count on an order.
func (m *Mock) stream(url string, headers []string, path string) error {
	_, size, err := m.get(url, headers, 0, 3)
	if err != nil {
		return fmt.Errorf("failed to configure streaming: %w", err)
	}
	content := make([]byte, size)
	for from := (size - 1) / mockSize * mockSize; from >= 0; from -= mockSize {
		b, _, err := m.get(url, headers, from, min(from+mockSize, size)-1)
		if err != nil {
			return says("Input/output error: %v", err)
		}
		copy(content[from:], b)
	}
	return os.WriteFile(path, content, 0o600)
}

func (m *Mock) get(url string, headers []string, from, to int64) (b []byte, size int64, err error) {
	for range 6 {
		if b, size, err = m.getOnce(url, headers, from, to); err == nil {
			m.mu.Lock()
			m.requests++
			m.mu.Unlock()
			return b, size, nil
		}
	}
	return nil, 0, err
}

func (m *Mock) getOnce(url string, headers []string, from, to int64) ([]byte, int64, error) {
	r, err := http.NewRequestWithContext(m.b.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		return nil, 0, err
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to))
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusPartialContent {
		return nil, 0, fmt.Errorf("the requested URL returned error: %d", resp.StatusCode)
	}
	var a, z, size int64
	if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &a, &z, &size); err != nil || a != from || z != to {
		return nil, 0, fmt.Errorf("wrong Content-Range %q", resp.Header.Get("Content-Range"))
	}
	b, err := io.ReadAll(resp.Body)
	if err == nil && int64(len(b)) != to-from+1 {
		err = io.ErrUnexpectedEOF
	}
	return bytes.Clone(b), size, err
}

// GetArtifactStatus is the method of that name.
func (*Mock) GetArtifactStatus() ([]map[string]dbus.Variant, *dbus.Error) { return nil, nil }

// InspectBundle is the method of that name.
func (m *Mock) InspectBundle(source string, args map[string]dbus.Variant) (map[string]dbus.Variant, *dbus.Error) {
	m.mu.Lock()
	busy := m.busy
	m.mu.Unlock()
	if busy {
		return nil, failed(errors.New("already processing a different method"))
	}
	for key := range args {
		if key != "http-headers" || !slices.Contains(m.Knows, key) {
			return nil, failed(says("Unsupported key: %s", key))
		}
	}
	whole, err := []byte(nil), error(nil)
	if strings.Contains(source, "://") {
		headers, _ := args["http-headers"].Value().([]string)
		whole, err = m.tail(source, headers)
	} else {
		whole, err = os.ReadFile(source)
	}
	if err != nil {
		return nil, failed(err)
	}
	if m.Inspected != nil {
		defer m.Inspected()
	}
	return map[string]dbus.Variant{"manifest-hash": dbus.MakeVariant(sum(m.b.manifest(source, whole, "verity")))}, nil
}

// tail fetches what RAUC looks at of a bundle that it does not install: its
// first bytes, its length, and the signature at its end.
func (m *Mock) tail(url string, headers []string) ([]byte, error) {
	_, size, err := m.get(url, headers, 0, 3)
	if err != nil {
		return nil, fmt.Errorf("failed to configure streaming: %w", err)
	}
	end, _, err := m.get(url, headers, size-8, size-1)
	if err != nil {
		return nil, says("Input/output error: %v", err)
	}
	n := int64(binary.BigEndian.Uint64(end)) // #nosec G115 -- a bundle that the test made
	signature, _, err := m.get(url, headers, size-8-n, size-9)
	if err != nil {
		return nil, says("Input/output error: %v", err)
	}
	return slices.Concat(signature, end), nil
}

// Mark is the method of that name.
func (m *Mock) Mark(state, slot string) (string, string, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.slots[slot]
	if !ok || m.busy {
		return "", "", failed(fmt.Errorf("cannot mark slot %s", slot))
	}
	boot, _ := s["bootname"].Value().(string)
	args := []string{"set-state", boot, state}
	if state == "active" {
		args = []string{"set-primary", boot}
		count, _ := s["activated.count"].Value().(uint32)
		s["activated.count"] = dbus.MakeVariant(count + 1)
	}
	if out, err := exec.CommandContext(m.b.t.Context(), m.b.path("bootloader"), args...).CombinedOutput(); err != nil {
		return "", "", failed(fmt.Errorf("%w: %s", err, out))
	}
	return slot, "marked slot " + slot + " as " + state, nil
}

// GetPrimary is the method of that name.
func (m *Mock) GetPrimary() (string, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, s := range m.slots {
		if s["bootname"].Value() == m.b.Primary() {
			return name, nil
		}
	}
	return "", failed(errors.New("no primary slot"))
}

// row is a slot as GetSlotStatus tells it.
type row struct {
	Name   string
	Values map[string]dbus.Variant
}

// GetSlotStatus is the method of that name.
func (m *Mock) GetSlotStatus() ([]row, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy {
		return nil, failed(errors.New("already processing a different method"))
	}
	var rows []row
	for name, s := range m.slots {
		boot, _ := s["bootname"].Value().(string)
		state, good := "inactive", "bad"
		if boot == m.b.Current() {
			state = "booted"
		}
		if m.b.Good(boot) {
			good = "good"
		}
		s["state"], s["boot-status"] = dbus.MakeVariant(state), dbus.MakeVariant(good)
		rows = append(rows, row{name, maps.Clone(s)})
	}
	return rows, nil
}
