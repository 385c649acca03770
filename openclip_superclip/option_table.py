"""The table of all options of OpenCLIP's trainer and of this package: what each changes in a run.

Resuming, reports, recipes and exported weights use it. A test checks that it contains every
option of the parsers.
"""

from enum import Enum


class Effect(Enum):
    """What another value of an option changes."""

    MODEL = "the model or its preprocessing, and so what is recorded with its weights"
    TRAINING = "the weights"
    CHANCE = "the weights, or their last bits, but not the mean of a score over seeds"
    NOTHING = "no weights: logs, machines, and where data is, which is compared otherwise"

    @property
    def changes_weights(self) -> bool:
        """Whether a run resumed with another value is no longer the same run."""
        return self is not Effect.NOTHING

    @property
    def changes_scores(self) -> bool:
        """Whether the scores of runs with different values have different means."""
        return self in (Effect.MODEL, Effect.TRAINING)


# By the names of the parsed options: those of OpenCLIP's releases and its main branch, ours, and
# what OpenCLIP adds after parsing.
_OPTIONS = {
    Effect.MODEL: """
        model pretrained force_context_length force_image_size force_naflex_vision
        force_quick_gelu image_interpolation image_mean image_resize_mode image_std
        superclip_idf superclip_special_tokens
    """,
    Effect.TRAINING: """
        aug_cfg beta1 beta2 coca_caption_loss_weight coca_contrastive_loss_weight
        dataset_resampled distill_model distill_pretrained epochs epochs_cooldown eps
        force_custom_text force_patch_dropout gather_with_grad grad_clip_norm local_loss
        lock_image lock_image_freeze_bn_stats lock_image_unlocked_groups
        lock_text lock_text_freeze_layer_norm lock_text_unlocked_layers
        lr lr_cooldown_end lr_cooldown_power lr_scheduler momentum opt precision
        pretrained_image siglip skip_scheduler train_data_upsampling_factors train_num_samples
        use_bn_sync use_bnb_linear warmup wd

        audio_ext audio_fill audio_fusion audio_int16_normalize audio_layer_decay audio_trunc
        bucket_chunk bucket_pool bucket_prefetch_pools genlap genlip image_key image_layer_decay
        json_text_key json_text_key_probs length_bucketing max_image_pixels
        naflex_batch_divisor naflex_loss_scale naflex_max_text_tokens
        naflex_max_tokens_per_batch naflex_num_train_image_tokens naflex_pad_multiple
        naflex_patch_size_probs naflex_patch_sizes naflex_seq_len_probs naflex_seq_lens naflexclap
        opt_fallback_list opt_kwargs pretrained_audio text_key text_layer_decay
        text_pad_multiple text_pooler_in_head use_naflex wd_exclude_patterns

        superclip superclip_captions superclip_head_input superclip_head_lr
        superclip_head_warmup superclip_long_caption superclip_long_context superclip_missing_long
        superclip_val_fraction superclip_weight
    """,
    Effect.CHANCE: """
        seed superclip_slices workers

        fsdp fsdp_no_reshard_after_forward fsdp_offload_cpu horovod loss_dist_impl
        torchcompile torchcompile_backend torchcompile_mode torchcompile_strategy
    """,
    Effect.NOTHING: """
        accum_freq batch_size csv_caption_key csv_img_key csv_separator dataset_type train_data
        train_sz world_size

        audio_multiprocessing_context cache_dir ddp_static_graph device dist_backend dist_url
        distributed grad_checkpointing local_rank no_set_device_rank rank

        audio_zeroshot_audio_key audio_zeroshot_class_key audio_zeroshot_dataset
        audio_zeroshot_multiprocessing_context audio_zeroshot_split audio_zeroshot_target_key
        audio_zeroshot_templates audio_zeroshot_workers checkpoint_path copy_codebase debug
        delete_previous_checkpoint distill fsdp_checkpoint help imagenet_v2 imagenet_val
        log_every_n_steps log_level log_local log_metric_every_n_steps log_path logs name
        remote_sync remote_sync_frequency remote_sync_protocol report_to resume
        resume_is_sharded save_frequency save_logs save_most_recent tensorboard
        tensorboard_path torchscript trace trackio train_loss_ema_samples val_data
        val_frequency val_num_samples val_retrieval_chunk_size val_retrieval_precision val_sz
        variable_text wandb wandb_notes wandb_project_name zeroshot_frequency

        in_run only_options superclip_accept_changes superclip_word_course
    """,
}
EFFECTS = {name: effect for effect, names in _OPTIONS.items() for name in names.split()}


def effect_of(option: str) -> Effect:
    """Returns the effect of an option; unknown options count as TRAINING."""
    return EFFECTS.get(option, Effect.TRAINING)
