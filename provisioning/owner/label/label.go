// Package label draws the labels that a vendor sticks on devices: a QR code of
// the claim, and the same in text for who has no camera.
//
// It writes one HTML page that a browser prints on A4 sheets of 3 by 8 labels
// of 70 by 37 mm. It stands apart from its parent so that devices, which check
// vouchers, carry no drawing. What it writes holds claim codes: treat it as the
// secret it is.
package label

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"iter"
	"strings"

	"rsc.io/qr"

	"github.com/tillward/tillward/provisioning/owner"
)

// Label is what stands on one device.
type Label struct {
	Vendor, Model, Serial string
	Claim                 owner.Claim
}

const head = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>%s</title>
<style>
@page { size: A4; margin: 0.5mm 0 }
body { margin: 0; display: grid; grid-template-columns: repeat(3, 70mm); font: 8pt/1.35 sans-serif; color: #000; background: #fff }
section { width: 70mm; height: 37mm; box-sizing: border-box; padding: 3mm 2mm; display: flex; align-items: center; gap: 1mm; break-inside: avoid; overflow: hidden }
svg { width: 31mm; height: 31mm; flex: none }
p { margin: 0; overflow-wrap: anywhere }
b, code { font-size: 9pt }
code { font-family: monospace; display: block; margin-top: 1mm }
</style>
</head>
<body>
`

// Sheet writes a page with all labels. Errors: those of w, and of a claim that
// is too long for a QR code.
func Sheet(w io.Writer, title string, labels iter.Seq[Label]) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, head, html.EscapeString(title))
	for l := range labels {
		code, err := qr.Encode(l.Claim.URI(), qr.M)
		if err != nil {
			return fmt.Errorf("label of %s: %w", l.Serial, err)
		}
		fmt.Fprintf(b, "<section>%s<p>%s<br>%s<br>S/N <b>%s</b><code>%s</code></p></section>\n",
			svg(code), html.EscapeString(l.Vendor), html.EscapeString(l.Model), html.EscapeString(l.Serial), html.EscapeString(breakable(l.Claim.Code)))
	}
	fmt.Fprint(b, "</body>\n</html>\n")
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write labels: %w", err)
	}
	return nil
}

// breakable lets the code fill two lines.
func breakable(code string) string {
	const half = 12 // two groups and their hyphens
	if len(code) <= half {
		return code
	}
	return code[:half] + " " + code[half:]
}

const quiet = 4 // modules of white around the code [ISO/IEC 18004, 6.3.8]

// svg draws a code as one path: a line of height 1 for each run of black.
func svg(code *qr.Code) string {
	var p strings.Builder
	for y := range code.Size {
		for x := 0; x < code.Size; x++ {
			from := x
			for code.Black(x, y) {
				x++
			}
			if x > from {
				fmt.Fprintf(&p, "M%d %dh%dv1h-%dz", from+quiet, y+quiet, x-from, x-from)
			}
		}
	}
	size := code.Size + 2*quiet
	return fmt.Sprintf(`<svg viewBox="0 0 %d %d" shape-rendering="crispEdges" role="img" aria-label="claim code"><path d="%s"/></svg>`, size, size, p.String())
}
