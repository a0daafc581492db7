package simulator_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// prove takes a till's trail away and proves the copy as an auditor does: with the service's key and no
// service. With bad it has to be refused.
func (s *scenario) prove(args []string) error {
	d, err := s.device(s.ctx, args[0])
	if err != nil || d == nil {
		return fmt.Errorf("no device of till %s, %w", args[0], err)
	}
	var key struct{ Key string }
	if err := s.world.Operator.Get(s.ctx, "/v1/audit/key", &key); err != nil {
		return err
	}
	pem, file := filepath.Join(s.dir, "service.pem"), filepath.Join(s.dir, "till-"+args[0]+".trail.gz")
	if err := os.WriteFile(pem, []byte(key.Key), 0o600); err != nil {
		return err
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := s.world.CLI(s.ctx, "audit", "export", fmt.Sprint(d["id"]), "-o", file); err != nil {
		return err
	}
	report, err := s.auditor(s.ctx, "audit", "verify", "--json", "--key", pem, file)
	if err != nil || !match(report, args[1:]) {
		return fmt.Errorf("the copy: %v, %w", text(report), err)
	}
	return nil
}

// auditor runs the command line where no service is.
func (s *scenario) auditor(ctx context.Context, args ...string) (report map[string]any, err error) {
	dir, err := binaries()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "tillward"), args...)
	cmd.Env = append(os.Environ(), "TILLWARD_SERVER=https://127.0.0.1:1", "TILLWARD_TOKEN_FILE=", "TILLWARD_CA=")
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 {
		err = nil // not whole, as the report says
	}
	if err != nil {
		return nil, err
	}
	return report, json.Unmarshal(out, &report)
}
