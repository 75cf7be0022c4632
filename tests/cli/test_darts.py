"""`qemuspawner import-darts`, with files written from DARTS's manual pages."""

from pathlib import Path

import pytest
from traitlets.config import Config

from qemuspawner.cli import main
from qemuspawner.cli.darts.perl import parse_value
from qemuspawner.machines.catalogue import load_catalogue
from qemuspawner.paths import StatePaths

MACHINES = """\
# The machines of the laboratory
[debian12.qcow2]
url=https://images.example.org/debian12.qcow2
description=Debian 12 &amp; <b>ROOT</b>

[Windows 10.vmdk]
description=Windows with a very long description, which is more than a name has room for on a card
owner=alice

[slax.iso]
url=http://mirror.example.org/slax.iso
description=Slax

[/srv/data]
mount=The laboratory's data

[notes.txt]
description=Not a machine
stray words
"""

CONFIG = r"""
#!/usr/bin/perl
use strict;
our %config;
$config{dir_machines} = "IMAGES";   # where "images" lie; all of them
$config{snapshot_lifetime}  = 3600*24*2;
$config{snapshot_alloc_cpu} = 2;
$config{'snapshot_alloc_mem'} = 4096.0;
$config{snapshot_alloc_disk} = 10;
$config{layout_cpu} = [2, 4, 8];
$config{layout_memory} = [ 4, 8 ];
$config{layout_lifetime} = [1, 2,
  4];
$config{qemu_video} = 'qxl';
$config{dir_mounts} = ["/srv/data", '/media'];
$config{service_max_session_nb} = 10;
$config{service_max_session_nb_per_user} = 3;
$config{service_max_gpu_nb_per_user} = 1;
$config{gpu_blacklist} = ["01:00.0"];
$config{user_admin} = ["", "picca", 'farhi\'s'];
$config{check_user_with_ldap} = 1;
$config{ldap_server} = "ldap.example.org";
$config{check_user_with_imap} = 0;
$config{email_from} = "desktops\@example.org";
$config{email_passwd} = "hunter2";
$config{smtp_use_ssl} = "starttls";
$config{boot_delay} = 5;
$config{fallback_servers} = "";
$config{config_script} = [ "exec:mount /data", "if(\@USER == 'x'):virt-customize:--install vim" ];
$config{check_user_custom} = sub { my ($user, $password) = @_; return $user eq "alice"; };
$config{nonsense} = 1;
1;
"""


class Import:
    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.state = StatePaths(root=root / "state")
        self._root, self._capsys = root, capsys
        self.images = root / "images"
        self.images.mkdir()
        self.out, self.err = "", list[str]()

    def run(self, machines: str = MACHINES, config: str = "", *options: str, suffix: str = "pl") -> int:
        files = [self._root / "machines.conf"]
        files[0].write_text(machines)
        if config:
            files.append(self._root / f"config.{suffix}")
            files[1].write_text(config.replace("IMAGES", str(self.images)))
        with pytest.raises(SystemExit) as caught:
            main(["--state", str(self.state.root), "import-darts", *map(str, files), *options])
        captured = self._capsys.readouterr()
        self.out, self.err = captured.out, captured.err.splitlines()
        assert isinstance(caught.value.code, int)
        return caught.value.code

    def settings(self) -> Config:
        """What is printed, as JupyterHub would read it."""
        config = Config()
        exec(self.out, {"c": config})
        return config


@pytest.fixture
def darts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Import:
    return Import(tmp_path, capsys)


def test_machines_are_added_as_darts_offered_them(darts: Import) -> None:
    """Hidden at first; with the sizes and the disk that DARTS gave them, and its text without its HTML."""
    assert darts.run(MACHINES, CONFIG) == 0

    found = load_catalogue([darts.state.machines], darts.state.images)
    debian = found.machines["debian12"]
    assert found.problems == ()
    assert set(found.machines) == {"debian12", "windows-10", "slax"}
    assert (debian.name, debian.hidden, debian.display, debian.image.bus) == (
        "Debian 12 & ROOT",
        True,
        "qxl",
        "sata",
    )
    assert debian.image.url == "https://images.example.org/debian12.qcow2"
    assert (debian.cpus.default, debian.cpus.offered) == (2, (2, 4, 8))
    assert (debian.memory.default, debian.memory.offered) == (4096, (4096, 8192))
    assert (debian.lifetime.max, debian.lifetime.offered) == (172800, (86400, 172800))
    assert found.machines["windows-10"].name == "Windows 10"
    assert found.machines["slax"].image.disk == 10240


def test_without_a_configuration_machines_have_our_own_sizes(darts: Import) -> None:
    darts.run()

    found = load_catalogue([darts.state.machines], darts.state.images)
    assert found.machines["debian12"].cpus.offered == (1, 2, 4)
    assert darts.out == ""


def test_an_image_that_is_there_is_used_where_it_lies(darts: Import) -> None:
    """Nothing is copied, and it is not fetched again."""
    (darts.images / "debian12.qcow2").touch()

    darts.run(MACHINES, CONFIG)

    image = load_catalogue([darts.state.machines], darts.state.images).machines["debian12"].image
    assert (image.file, image.url) == (str(darts.images / "debian12.qcow2"), "")


def test_what_is_left_to_do_about_images_is_said(darts: Import) -> None:
    darts.run()

    assert [line.partition("; ")[2] for line in darts.err if "was added" in line] == [
        "fetch its image: qemuspawner machines fetch debian12",
        "bring its image: qemuspawner machines import windows-10 'Windows 10.vmdk'",
        "bring its image: qemuspawner machines import slax slax.iso",
    ]


def test_settings_are_python_that_the_hub_takes(darts: Import) -> None:
    """One limit of DARTS's each; no administrator without a name."""
    darts.run(MACHINES, CONFIG)

    config = darts.settings()
    assert config.JupyterHub == {"active_server_limit": 10, "authenticator_class": "ldap"}
    assert config.Authenticator.admin_users == {"picca", "farhi's"}
    assert config.LDAPAuthenticator.server_address == "ldap.example.org"
    assert config.Mailer == {"sender": "desktops@example.org", "security": "starttls"}
    assert config.QemuSpawner == {
        "max_lifetime": 172800,
        "folders": [
            {"name": "data", "path": "/srv/data", "mount": "/mnt/data"},
            {"name": "media", "path": "/media", "mount": "/mnt/media"},
        ],
        "denied_gpus": ["0000:01:00.0"],
        "quotas": {"user": {"sessions": 3, "gpus": 1}},
        "notify": "qemuspawner.hub.notices.mail.Mailer",
    }


def test_every_line_that_is_not_taken_over_is_said(darts: Import) -> None:
    """With its file, its number and a reason; what is switched off needs none."""
    darts.run(MACHINES, CONFIG)

    said = [line.removeprefix("not taken over: ") for line in darts.err if line.startswith("not taken")]
    assert [": ".join(line.split(": ")[:2]) for line in said] == [
        "config.pl:25: email_passwd",
        "config.pl:27: boot_delay",
        "config.pl:29: config_script",
        "config.pl:30: check_user_custom",
        "config.pl:30: 'return $user eq'",
        "config.pl:30: '}'",
        "config.pl:31: nonsense",
        "machines.conf:8: Windows 10.vmdk, owner",
        "machines.conf:11: slax.iso, url",
        "machines.conf:14: /srv/data",
        "machines.conf:17: notes.txt",
        "machines.conf:19: 'stray words'",
    ]


def test_a_password_is_never_printed(darts: Import) -> None:
    darts.run(MACHINES, CONFIG + '\n$config{email_passwd} = get("hunter3");\nsend("hunter4");\n')

    assert "hunter" not in darts.out + "\n".join(darts.err)


def test_an_ini_file_is_read_too(darts: Import) -> None:
    darts.run(MACHINES, "service_max_session_nb_per_user = 2\nuser_admin=picca\n", suffix="ini")

    config = darts.settings()
    assert config.QemuSpawner.quotas == {"user": {"sessions": 2}}
    assert config.Authenticator.admin_users == {"picca"}


def test_an_ldap_server_that_is_not_asked_is_no_setting(darts: Import) -> None:
    darts.run(MACHINES, "$config{check_user_with_ldap} = 0; $config{ldap_server} = 'ldap.example.org';")

    assert darts.out == ""


def test_variables_are_followed(darts: Import) -> None:
    """As DARTS's own configuration has them."""
    (darts.images / "debian12.qcow2").touch()
    config = """
my $root = 'IMAGES';
my @mounts = ('/mnt', '/media');
my @admin = ('picca', 'bac');
$config{service} = "images";
$config{dir_machines} = "$root/../$config{service}";
$config{dir_mounts} = [@mounts];
$config{user_admin} = [ "farhi", @admin ];
$config{check_user_with_ldap} = 1;
$config{ldap_server} = 'ldap.' . "example.org";
"""

    darts.run(MACHINES, config)

    settings = darts.settings()
    assert settings.Authenticator.admin_users == {"farhi", "picca", "bac"}
    assert [one["path"] for one in settings.QemuSpawner.folders] == ["/mnt", "/media"]
    assert settings.LDAPAuthenticator.server_address == "ldap.example.org"
    image = load_catalogue([darts.state.machines], darts.state.images).machines["debian12"].image
    assert Path(image.file).samefile(darts.images / "debian12.qcow2")


def test_a_table_of_perl_is_read_too(darts: Import) -> None:
    """Also without its last semicolon."""
    darts.run(MACHINES, "%config = (\n  user_admin => ['picca'],  # who\n  service_max_session_nb => 4,\n)")

    config = darts.settings()
    assert config.JupyterHub.active_server_limit == 4
    assert config.Authenticator.admin_users == {"picca"}


def test_a_machine_that_cannot_be_is_said_with_the_key(darts: Import) -> None:
    assert darts.run("[slax.iso]\n", "$config{layout_cpu} = [1000];") == 1

    assert "'slax' was not added" in darts.err[0]
    assert "cpus.offered" in darts.err[0]


def test_a_second_import_changes_nothing(darts: Import) -> None:
    """What an administrator has made of a machine since then stays."""
    darts.run()
    text = (darts.state.machines / "slax" / "machine.toml").read_text()

    assert darts.run(MACHINES.replace("description=Slax", "description=Other")) == 0
    assert (darts.state.machines / "slax" / "machine.toml").read_text() == text
    assert sum("was not added" in line for line in darts.err) == 3


def test_a_dry_run_adds_nothing(darts: Import) -> None:
    assert darts.run(MACHINES, "", "--dry-run") == 0

    assert "# slax/machine.toml" in darts.out
    assert not darts.state.machines.exists()


def test_names_that_come_to_the_same_id_are_numbered(darts: Import) -> None:
    darts.run("[a b.iso]\n[a_b.iso]\n[12.iso]\n" + f"[{'x' * 60}.iso]\n[{'x' * 50}.iso]\n")

    assert {path.name for path in darts.state.machines.iterdir() if not path.name.startswith(".")} == {
        "a-b",
        "a-b-2",
        "machine-12",
        "x" * 40,
        f"{'x' * 38}-2",
    }


def test_a_file_that_is_not_there_is_one_clear_line(darts: Import, tmp_path: Path) -> None:
    assert darts.run("", "", str(tmp_path / "missing.pl")) == 1
    assert darts.err == [f"error: '{tmp_path / 'missing.pl'}' cannot be read: No such file or directory."]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("60*60*24 + 1", 86401),
        ("-(2 + 3) * 4", -20),
        ("0.3", 0.3),
        ("1_000", 1000),
        ("undef", None),
        ("'a\\'b'", "a'b"),
        ('"a\\@b\\n"', "a@b\n"),
        ("[1, ['x',], ()]", [1, ["x"], []]),
        ("qw(a b)", ["a", "b"]),
        ("('a', 'b')", ["a", "b"]),
    ],
)
def test_plain_values_of_perl(text: str, value: object) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize(
    "text",
    [
        '"$name"',
        '"me@site"',
        "`id`",
        "system('id')",
        "sub { 1 }",
        "1; 2",
        "[1",
        "1 1",
        "1/0",
        "'a' * 2",
        "",
        "[" * 5000,
        "$unknown",
        "'a' . [1]",
        "-" * 5000 + "1",
        "9" * 400,
    ],
)
def test_other_perl_is_not_run(text: str) -> None:
    with pytest.raises(ValueError, match="not run"):
        parse_value(text)
