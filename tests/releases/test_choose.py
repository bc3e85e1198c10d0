import pytest

from planner.errors import InputError
from planner.releases.choose import release_for
from planner.releases.known import DEFAULT_VERSION, RELEASES, V0_8_3, V0_19_0, V0_26_0, V0_33_0


def test_verified_release_answers_without_warning():
    choice = release_for("0.26.0")
    assert choice.release is V0_26_0
    assert choice.warning is None


def test_release_read_from_source_says_so():
    choice = release_for("v0.33.0")
    assert choice.release is V0_33_0
    assert choice.warning is not None
    assert "not verified on hardware" in choice.warning


@pytest.mark.parametrize(
    ("version", "entry"),
    [
        ("0.8.0", "0.8.3"),
        ("0.9.1", "0.8.3"),
        ("0.12.0", "0.10.2"),
        ("0.15.0", "0.16.0"),
        ("0.18.0", "0.17.0"),
        ("0.20.1", "0.19.0"),
        ("0.21.0", "0.22.1"),
        ("0.26.1rc1.dev608", "0.26.0"),
        ("0.26.0.post1", "0.26.0"),
        ("0.28.1", "0.28.0"),
        ("0.30.0", "0.29.0"),
        ("0.31.0", "0.29.0"),
        ("0.40", "0.33.0"),
    ],
)
def test_unknown_releases_borrow_from_the_nearest_and_name_it(version, entry):
    choice = release_for(version)
    assert choice.release.version == entry
    assert choice.warning is not None
    assert version in choice.warning
    assert entry in choice.warning


@pytest.mark.parametrize("version", ["0.7.3", "0.0.1", "latest", "", "0.26.x", "26", "0.26.0; rm -rf", "1.2.3.4"])
def test_nonsense_and_ancient_versions_are_refused(version):
    with pytest.raises(InputError):
        release_for(version)


def test_default_version_is_the_newest_verified_on_hardware():
    verified = [release.version for release in RELEASES if release.evidence == "verified on hardware"]
    assert verified[-1] == DEFAULT_VERSION


def test_later_release_differs_where_the_sources_differ():
    assert V0_26_0.ledger_rule != V0_33_0.ledger_rule
    assert not V0_26_0.v2_profiles_encoder
    assert V0_33_0.v2_profiles_encoder
    assert "bitsandbytes" in V0_26_0.quantization_methods
    assert "bitsandbytes" not in V0_33_0.quantization_methods
    assert set(V0_26_0.kv_cache_dtypes) < set(V0_33_0.kv_cache_dtypes)


def test_older_releases_keep_their_own_ledger_and_defaults():
    assert V0_8_3.ledger_rule == "absolute_peak"
    assert V0_8_3.sampler_rule == "sorted"
    assert {tier.max_num_seqs for tier in V0_8_3.batch_tiers} == {1024}
    assert V0_19_0.default_gpu_memory_utilization == 0.9
    assert V0_19_0.graph_budget == "opt_in"
    assert V0_26_0.graph_budget == "default"


def test_entries_are_in_order_and_refuse_only_what_was_gone_by_then():
    numbers = [tuple(int(part) for part in release.version.split(".")) for release in RELEASES]
    assert numbers == sorted(numbers)
    assert "BaichuanForCausalLM" in dict(V0_26_0.removed_architectures)
    assert "BaichuanForCausalLM" not in dict(V0_19_0.removed_architectures)
    assert "Phi3SmallForCausalLM" in dict(V0_19_0.removed_architectures)
