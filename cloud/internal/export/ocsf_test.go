package export_test

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/cloud/internal/export"
	"github.com/tillward/tillward/cloud/internal/fleet"
)

// schema is what OCSF 1.8.0 publishes of the classes that are used: its
// "source" says from which commit. It is put together from the definitions of
// the schema itself, not written from memory; what "requirement", "profile",
// "enum", types and constraints ask for is checked by the reader below.
type schema struct {
	Classes, Objects map[string]definition
	Types            map[string]struct {
		Type, Regex string
		Range       []float64
		MaxLen      int `json:"max_len"`
	}
}

type definition struct {
	Attributes map[string]struct {
		Type, Object, Requirement, Profile string
		Array                              bool
		Enum                               map[string]string
	}
	Constraints struct {
		AtLeastOne []string `json:"at_least_one"`
	}
}

func readSchema(t testing.TB) (s schema) {
	t.Helper()
	b, err := os.ReadFile("testdata/ocsf-1.8.0.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// valid returns what is wrong with an event.
func (s schema) valid(line []byte) (wrong []string) {
	var e map[string]any
	if err := json.Unmarshal(line, &e); err != nil {
		return []string{err.Error()}
	}
	class, ok := s.Classes[fmt.Sprint(e["class_uid"])]
	if !ok {
		return []string{fmt.Sprintf("class_uid %v is none of the classes", e["class_uid"])}
	}
	meta, _ := e["metadata"].(map[string]any)
	var profiles []string
	all, _ := meta["profiles"].([]any)
	for _, p := range all {
		profiles = append(profiles, fmt.Sprint(p))
	}
	wrong = s.object("", class, e, profiles)
	class100, _ := e["class_uid"].(float64)
	activity, _ := e["activity_id"].(float64)
	if e["type_uid"] != 100*class100+activity {
		wrong = append(wrong, fmt.Sprintf("type_uid %v is not that of class and activity", e["type_uid"]))
	}
	return wrong
}

func (s schema) object(at string, d definition, o map[string]any, profiles []string) (wrong []string) {
	bad := func(k, format string, a ...any) { wrong = append(wrong, at+k+": "+fmt.Sprintf(format, a...)) }
	for k, v := range o {
		a, ok := d.Attributes[k]
		if !ok {
			bad(k, "no attribute of this")
			continue
		}
		if a.Profile != "" && !slices.Contains(profiles, a.Profile) {
			bad(k, "belongs to the profile %s, which is not named", a.Profile)
		}
		values := []any{v}
		if a.Array {
			if values, ok = v.([]any); !ok {
				bad(k, "%v is no array", v)
			}
		}
		for _, v := range values {
			wrong = append(wrong, s.value(at+k, a.Type, a.Object, a.Enum, v, profiles)...)
		}
	}
	for k, a := range d.Attributes {
		if _, ok := o[k]; !ok && a.Requirement == "required" && (a.Profile == "" || slices.Contains(profiles, a.Profile)) {
			bad(k, "is required")
		}
	}
	if one := d.Constraints.AtLeastOne; len(one) > 0 && !slices.ContainsFunc(one, func(k string) bool { _, ok := o[k]; return ok }) {
		bad("", "has none of %v", one)
	}
	return wrong
}

func (s schema) value(at, kind, object string, enum map[string]string, v any, profiles []string) (wrong []string) {
	bad := func(format string, a ...any) { wrong = append(wrong, at+": "+fmt.Sprintf(format, a...)) }
	if kind == "object_t" {
		o, ok := v.(map[string]any)
		switch d, known := s.Objects[object]; {
		case !ok:
			bad("%v is no object", v)
		case !known:
			bad("the object %s is not in testdata", object)
		case object != "object": // that one may hold anything
			wrong = s.object(at+".", d, o, profiles)
		}
		return wrong
	}
	if len(enum) > 0 {
		if _, ok := enum[fmt.Sprint(v)]; !ok {
			bad("%v is none of its values", v)
		}
	}
	t, base := s.Types[kind], kind
	if t.Type != "" {
		base = t.Type
	}
	switch base {
	case "string_t":
		text, ok := v.(string)
		if !ok {
			bad("%v is no string", v)
		} else if t.Regex != "" && !regexp.MustCompile(t.Regex).MatchString(text) {
			bad("%q is no %s", text, kind)
		}
	case "integer_t", "long_t":
		n, ok := v.(float64)
		if !ok || n != float64(int64(n)) || len(t.Range) == 2 && (n < t.Range[0] || n > t.Range[1]) {
			bad("%v is no %s", v, kind)
		}
	case "boolean_t":
		if _, ok := v.(bool); !ok {
			bad("%v is no boolean", v)
		}
	default:
		bad("nobody checks the type %s", kind)
	}
	return wrong
}

// TestOCSF validates an event of every class, severity and trail, and hostile
// ones, against the published schema.
func TestOCSF(t *testing.T) {
	s := readSchema(t)
	seen := map[string]bool{}
	check := func(e fleet.TrailEntry) {
		b := export.Render(export.KindFile, export.FormatOCSF, e)
		if wrong := s.valid(b); len(wrong) > 0 {
			t.Errorf("%s: %s\n%s", e.Kind, strings.Join(wrong, "; "), b)
		}
		var v struct {
			Class int `json:"class_uid"`
		}
		must(t, json.Unmarshal(b, &v))
		seen[fmt.Sprint(v.Class)] = true
	}
	for _, c := range append(export.Classes(), export.Class{Kind: "quantum.flux"}) {
		for _, severity := range []string{"info", "warn", "alarm", "other"} {
			for _, device := range []fleet.DeviceID{"", "till1"} {
				e := sample(1, c.Kind, severity, device)
				check(e)
				e.Actor, e.Subject, e.Detail = "192.0.2.1:4711", "", nil
				check(e)
				e.Actor = ""
				check(e)
			}
		}
	}
	for _, text := range hostile {
		check(wicked(1, text))
	}
	if len(seen) != len(s.Classes) {
		t.Errorf("of %d classes only %v were seen", len(s.Classes), seen)
	}
}

// TestOCSFCanFail breaks an event in each way.
func TestOCSFCanFail(t *testing.T) {
	s := readSchema(t)
	for want, change := range map[string]func(e map[string]any){
		"class_uid 9 is none":            func(e map[string]any) { e["class_uid"] = 9 },
		"colour: no attribute":           func(e map[string]any) { e["colour"] = "red" },
		"time: is required":              func(e map[string]any) { delete(e, "time") },
		"time: now is no timestamp_t":    func(e map[string]any) { e["time"] = "now" },
		"severity_id: 77 is none":        func(e map[string]any) { e["severity_id"] = 77 },
		"activity_id: 55 is none":        func(e map[string]any) { e["activity_id"] = 55 },
		"type_uid 1 is not":              func(e map[string]any) { e["type_uid"] = 1 },
		"message: 5 is no string":        func(e map[string]any) { e["message"] = 5 },
		"metadata.version: is required":  func(e map[string]any) { delete(e["metadata"].(map[string]any), "version") },
		"entity.: has none of":           func(e map[string]any) { e["entity"] = map[string]any{} },
		"device: belongs to the profile": func(e map[string]any) { e["device"] = map[string]any{"uid": "x", "type_id": 99} },
		"src_endpoint.ip: \"no ip\" is":  func(e map[string]any) { e["src_endpoint"] = map[string]any{"ip": "no ip"} },
		"src_endpoint.port: 70000 is":    func(e map[string]any) { e["src_endpoint"] = map[string]any{"port": 70000, "ip": "192.0.2.1"} },
		"is_alert: belongs to the":       func(e map[string]any) { e["is_alert"] = true },
	} {
		var e map[string]any
		must(t, json.Unmarshal(export.Render(export.KindFile, export.FormatOCSF, sample(1, "device.revoked", "alarm", "")), &e))
		change(e)
		b, err := json.Marshal(e)
		must(t, err)
		if wrong := strings.Join(s.valid(b), "; "); !strings.Contains(wrong, want) {
			t.Errorf("got %q, want %q", wrong, want)
		}
	}
}
