package brcheck_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestSurvived: what a build says of the fragments it was made by.
func TestSurvived(t *testing.T) {
	const config = "# made by Kconfig\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=m\nCONFIG_D=\"a b\"\nCONFIG_AB=y\n"
	for _, c := range []struct{ name, first, second, want string }{
		{"all there", "# of ours\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_D=\"a b\"\n", "CONFIG_AB=y\n", ""},
		{"dropped", "CONFIG_A=y\nCONFIG_E=y\n", "", "CONFIG_E=y: the build has no such option\n"},
		{"switched off", "CONFIG_B=y\n", "", "CONFIG_B=y: the build has # CONFIG_B is not set\n"},
		{"a module", "CONFIG_C=y\n", "", "CONFIG_C=y: the build has CONFIG_C=m\n"},
		{"not to be there", "# CONFIG_A is not set\n", "", "# CONFIG_A is not set: the build has CONFIG_A=y\n"},
		{"another text", "", "CONFIG_D=\"a\"\n", "CONFIG_D=\"a\": the build has CONFIG_D=\"a b\"\n"},
		{"off, and no such option", "# CONFIG_E is not set\nCONFIG_F=n\nCONFIG_B=n\n", "", ""},
		{"the last one counts", "CONFIG_A=n\nCONFIG_B=y\n", "CONFIG_A=y\n# CONFIG_B is not set\n", ""},
		{"and it is lost", "CONFIG_A=y\n", "CONFIG_A=n\n", "# CONFIG_A is not set: the build has CONFIG_A=y\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			var files []string
			for name, text := range map[string]string{".config": config, "1": c.first, "2": c.second} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range []string{".config", "1", "2"} {
				files = append(files, filepath.Join(dir, name))
			}
			got, err := exec.CommandContext(t.Context(), filepath.Join(tree, "survived.sh"), files...).Output()
			if string(got) != c.want || (err == nil) != (c.want == "") {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}
