package main

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"os"

	"github.com/tillward/tillward/provisioning/trust"
)

type ekCmd struct {
	Sign   ekSign   `cmd:"" help:"Sign a batch of TPMs: a JSON array of {ek_sha256, model, serial}."`
	Verify ekVerify `cmd:"" help:"Check a signed batch."`
}

type ekSign struct {
	In  string `required:"" help:"JSON file with the batch." placeholder:"FILE"`
	Key string `required:"" help:"The vendor's key." placeholder:"FILE"`
	Out string `required:"" help:"Where to write the signed list." placeholder:"FILE"`
}

// Run implements the command.
func (c *ekSign) Run(o *out) error {
	b, err := os.ReadFile(c.In)
	if err != nil {
		return usage{err}
	}
	var entries []trust.ListedEK
	if err := json.Unmarshal(b, &entries); err != nil {
		return fmt.Errorf("%s: %w", c.In, err)
	}
	key, err := trust.ReadKey(c.Key)
	if err != nil {
		return err
	}
	l, err := trust.SignList(key, entries)
	if err != nil {
		return err
	}
	if _, err := trust.VerifyList(key.Public().(ed25519.PublicKey), l); err != nil { // also checks the entries
		return err
	}
	b, err = json.Marshal(l) // not indented: the signature is over the entries as they stand
	if err != nil {
		return fmt.Errorf("encode list: %w", err)
	}
	if err := os.WriteFile(c.Out, append(b, '\n'), 0o644); err != nil { // #nosec G306 -- public by nature
		return fmt.Errorf("write list: %w", err)
	}
	return o.print(map[string]any{"file": c.Out, "entries": len(entries)}, "%s  %d TPMs", c.Out, len(entries))
}

type ekVerify struct {
	In  string `required:"" help:"The signed list." placeholder:"FILE"`
	Key string `required:"" help:"The vendor's key; its public half is used." placeholder:"FILE"`
}

// Run implements the command.
func (c *ekVerify) Run(o *out) error {
	b, err := os.ReadFile(c.In)
	if err != nil {
		return usage{err}
	}
	var l trust.List
	if err := json.Unmarshal(b, &l); err != nil {
		return fmt.Errorf("%s: %w", c.In, err)
	}
	key, err := trust.ReadKey(c.Key)
	if err != nil {
		return err
	}
	entries, err := trust.VerifyList(key.Public().(ed25519.PublicKey), l)
	if err != nil {
		return err
	}
	return o.print(entries, "%s verifies: %d TPMs", c.In, len(entries))
}
