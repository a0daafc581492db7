package discover

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

var claimForm = regexp.MustCompile(`^[A-Za-z0-9-]+$`)

// claimCode reports whether s may be a claim code; enrolment takes up to 64 bytes.
func claimCode(s string) bool { return 4 <= len(s) && len(s) <= 64 && claimForm.MatchString(s) }

// readFile reads a service file: three keys and no others. In particular no key
// can name roots.
func readFile(s *Service, b []byte) error {
	var f struct {
		Enrol      string `toml:"enrol"`
		ServerName string `toml:"server_name"`
		Claim      string `toml:"claim"`
	}
	if err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&f); err != nil {
		return explain(err)
	}
	if f.Enrol == "" {
		return errors.New("no enrol: write enrol = \"https://host:port\"")
	}
	enrol, err := address(f.Enrol)
	if err != nil {
		return fmt.Errorf("enrol: %w", err)
	}
	if f.ServerName != "" && !host(f.ServerName) {
		return fmt.Errorf("server_name %q: write the name in the service's certificate, in small letters", f.ServerName)
	}
	if f.Claim != "" && !claimCode(f.Claim) {
		return errors.New("claim: write the code as on the label: 4 to 64 letters, digits and dashes")
	}
	s.Enrol = enrol
	if f.ServerName != "" {
		s.ServerName = f.ServerName
	}
	if f.Claim != "" {
		s.Claim = f.Claim
	}
	return nil
}

// explain says what is wrong with a file, and where, without quoting its lines:
// one may hold a claim code.
func explain(err error) error {
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(strict.Errors) > 0 {
		e := strict.Errors[0]
		line, _ := e.Position()
		return fmt.Errorf("line %d: unknown key %q: only enrol, server_name and claim may be set here; roots are the image's", line, strings.Join(e.Key(), "."))
	}
	if at, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, column := at.Position()
		return fmt.Errorf("line %d, column %d is not as it should be: write key = \"value\" lines for enrol, server_name and claim", line, column)
	}
	return errors.New("is not a TOML file: write key = \"value\" lines for enrol, server_name and claim")
}
