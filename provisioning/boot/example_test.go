package boot_test

import (
	"fmt"

	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// A till was made to boot another kernel. What it quotes and logs is honest,
// and that is what gives it away.
func Example() {
	good := tpmfarm.Default("os/1.2.3")
	events, err := boot.ParseLog(good.Log(), good.Registers())
	if err != nil {
		fmt.Println(err)
		return
	}
	reference := boot.Observe("POS 500", "os/1.2.3", "uefi", []int{4, 7, 8, 9}, events)

	till := tpmfarm.Default("os/1.2.3")
	till.Event("kernel").Image = []byte("another kernel")
	result := boot.Appraise([]boot.Reference{reference}, nil, till.Registers(), till.Log())
	fmt.Println(result.Trust)
	for _, f := range result.Findings {
		fmt.Println(f.Check, "in PCR", f.PCR)
	}
	// Output:
	// quarantined
	// boot.unknown-event in PCR 9
}
